from serverless_triton.loader import _core
from serverless_triton.loader.layout import ALIGNMENT_BYTES, aligned


def test_sizes_are_rounded_up_to_whole_granules() -> None:
    assert [aligned(size) for size in (0, 1, ALIGNMENT_BYTES, ALIGNMENT_BYTES + 1)] == [0, 4096, 4096, 8192]
    assert aligned(5, 4) == 8


def test_the_alignment_is_the_core_s() -> None:
    assert ALIGNMENT_BYTES == _core.ALIGNMENT_BYTES
