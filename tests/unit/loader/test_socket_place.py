"""Where a store's socket may be made: nothing but a socket is ever removed for it."""

import socket
from pathlib import Path

import pytest

from serverless_triton.loader import SocketUnusable
from serverless_triton.loader.daemon import _listener_at


def test_a_file_at_the_socket_s_path_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")

    with (
        pytest.raises(SocketUnusable, match=rf"{path} exists and is no socket; choose another path"),
        _listener_at(path),
    ):
        pass

    assert path.read_bytes() == b"weights"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_link_and_a_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")

    for path in (tmp_path, tmp_path / "link"):
        with pytest.raises(SocketUnusable, match="is no socket"), _listener_at(path):
            pass
    assert (tmp_path / "link").is_symlink()


def test_what_took_the_socket_s_place_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"

    with _listener_at(path):
        path.unlink()
        path.write_bytes(b"weights")

    assert path.read_bytes() == b"weights"


def test_a_dead_store_s_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    with _listener_at(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("place", ["missing", "file", "/proc"])
def test_a_directory_that_cannot_hold_a_socket_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    directory = tmp_path / place

    with pytest.raises(SocketUnusable, match=rf"in {directory}: .*--socket"), _listener_at(directory / "s"):
        pass
