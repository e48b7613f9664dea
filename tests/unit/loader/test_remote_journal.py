from hypothesis import given
from hypothesis import strategies as st

from serverless_triton.loader.checkpoint import Checkpoint, CheckpointFile
from serverless_triton.loader.remote.journal import ChunkId, parse_journal, render_lines
from serverless_triton.loader.remote.manifest import Manifest, parse_manifest

DIGESTS = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")
CHUNKS = st.builds(ChunkId, st.integers(0, 99), st.integers(0, 10**6))


def checkpoint(**changes) -> Checkpoint:
    fields = {"name": "a.safetensors", "real_path": "s3://b/a.safetensors", "bytes": 9, "etag": '"1"', **changes}
    return Checkpoint(path="s3://b", device="remote:s3://b", files=(CheckpointFile(mtime_ns=0, inode=0, **fields),))


@given(st.dictionaries(CHUNKS, DIGESTS, max_size=20), st.integers(0, 2000))
def test_a_journal_that_was_cut_off_anywhere_has_what_was_written_whole(digests: dict[ChunkId, str], cut: int):
    content = render_lines(digests.items())
    assert parse_journal(content) == digests
    left = parse_journal(content[:cut])
    assert left.items() <= digests.items()
    assert len(left) == content[:cut].count(b"\n")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_a_journal_or_a_manifest(content: bytes):
    parse_journal(content)
    parse_manifest(content)


def test_what_follows_a_broken_line_is_not_believed():
    digest = "0" * 32
    assert parse_journal(f"0 0 {digest}\n0 1 {digest[:-1]}\n0 2 {digest}\n".encode()) == {ChunkId(0, 0): digest}


def test_a_manifest_comes_back_as_the_checkpoint_that_it_was_made_of():
    manifest = Manifest.of(checkpoint())
    assert parse_manifest(manifest.render()) == manifest
    assert manifest.checkpoint == checkpoint()


def test_every_other_version_and_place_is_another_entry():
    others = [
        checkpoint(etag='"2"'),
        checkpoint(bytes=10),
        checkpoint(name="b.safetensors"),
        checkpoint(real_path="s3://c/a"),
    ]
    assert len({Manifest.of(one).key for one in [checkpoint(), *others]}) == 5


def test_a_manifest_of_another_make_is_none():
    whole = Manifest.of(checkpoint()).render()
    for content in (b"", b"{}", b"[]", whole[:-9], whole.replace(b'"version": 1', b'"version": 2')):
        assert parse_manifest(content) is None
    assert parse_manifest(whole.replace(b"a.safetensors", b"../a.safetensors")) is None
