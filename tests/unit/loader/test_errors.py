import pytest

from serverless_triton.loader import errors


def test_an_error_crosses_the_link_by_name() -> None:
    error = errors.error_of("StoreFull", "no room")

    assert type(error) is errors.StoreFull
    assert str(error) == "no room"


@pytest.mark.parametrize("name", ["KeyboardInterrupt", "error_of", "annotations", ""])
def test_only_loader_errors_can_be_named(name: str) -> None:
    error = errors.error_of(name, "text")

    assert type(error) is errors.StoreError
    assert "text" in str(error)
