import pytest

from serverless_triton.loader.checkpoint import CheckpointFile
from serverless_triton.loader.chunk_hashes import CHUNK_BYTES
from serverless_triton.loader.remote.chunks import chunks_of
from serverless_triton.loader.remote.patience import Patience, delay_s
from serverless_triton.loader.remote.settings import RemoteSettings
from serverless_triton.loader.remote.throttle import Throttle


def test_delays_double_up_to_a_limit_and_vary():
    assert [delay_s(failures, 1.0) for failures in (1, 2, 3, 40)] == [0.2, 0.4, 0.8, 10.0]
    assert delay_s(3, 0.0) == 0.4


def test_patience_ends_when_nothing_succeeded_for_its_time():
    now_s = 0.0
    patience = Patience(10, lambda: now_s)
    assert patience.next_delay_s(1) is not None
    now_s = 9.0
    patience.succeeded()
    now_s = 18.0
    assert patience.next_delay_s(1) is not None
    now_s = 19.0
    assert patience.next_delay_s(1) is None


def test_a_throttle_spreads_bytes_over_time():
    throttle = Throttle(1000)
    pauses_s = [throttle.take(500, now_s=5.0) for _ in range(3)]
    assert pauses_s == pytest.approx([0.4, 0.9, 1.4])
    assert throttle.take(500, now_s=100.0) == pytest.approx(0.4)


def test_no_limit_never_pauses():
    assert Throttle(0).take(10**12, now_s=0.0) == 0.0


def test_chunks_follow_a_file_through_its_pieces():
    size = 2 * CHUNK_BYTES + 10
    file = CheckpointFile(name="a", real_path="s3://b/a", bytes=size, mtime_ns=0, inode=0, etag="e")
    [chunks] = chunks_of([file], [[(5 * CHUNK_BYTES, CHUNK_BYTES), (0, CHUNK_BYTES + 4096)]])
    assert [(chunk.begin, chunk.end, chunk.offset) for chunk in chunks] == [
        (0, CHUNK_BYTES, 5 * CHUNK_BYTES),
        (CHUNK_BYTES, 2 * CHUNK_BYTES, 0),
        (2 * CHUNK_BYTES, size, CHUNK_BYTES),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"bytes_per_second": -1},
        {"patience_s": 0},
        {"hub_endpoint": "http://hub.example"},
        {"hub_endpoint": "https://user:secret@hub.example"},
        {"hub_endpoint": "nonsense"},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict):
    with pytest.raises(ValueError, match="must") as failure:
        RemoteSettings(**wrong)
    assert "secret" not in str(failure.value)


def test_the_hub_is_the_environments():
    settings = RemoteSettings.from_environment(environment={"HF_ENDPOINT": "https://mirror/", "HF_TOKEN": " t "})
    assert (settings.hub_endpoint, settings.hub_token) == ("https://mirror", "t")
    assert RemoteSettings.from_environment(environment={}).hub_endpoint == "https://huggingface.co"
