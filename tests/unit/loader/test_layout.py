from serverless_triton.loader import _core
from serverless_triton.loader.checkpoint import CheckpointFile
from serverless_triton.loader.layout import ALIGNMENT_BYTES, lay_out


def file(size_bytes: int) -> CheckpointFile:
    return CheckpointFile(name="m", real_path=f"/{size_bytes}", bytes=size_bytes, mtime_ns=0, inode=0)


def test_extents_are_aligned_and_do_not_overlap() -> None:
    layout = lay_out([file(1), file(ALIGNMENT_BYTES), file(0), file(ALIGNMENT_BYTES + 1)])

    assert [extent.offset // ALIGNMENT_BYTES for extent in layout.extents] == [0, 1, 2, 2]
    assert layout.bytes == 4 * ALIGNMENT_BYTES


def test_the_alignment_is_the_core_s() -> None:
    assert ALIGNMENT_BYTES == _core.ALIGNMENT_BYTES
