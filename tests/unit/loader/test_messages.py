import pytest

from serverless_triton.loader.errors import StoreProtocolError
from serverless_triton.loader.layout import Extent
from serverless_triton.loader.messages import (
    Attach,
    Attached,
    Cancel,
    Estimate,
    Estimated,
    Evict,
    Evicted,
    Failed,
    GetEstimate,
    GetStatus,
    ImageStatus,
    LoadReceipt,
    Pin,
    Pinned,
    Prefetch,
    Prefetching,
    Release,
    Reply,
    Request,
    Status,
    StoreStatus,
    Unpin,
    Unpinned,
    decode_reply,
    decode_request,
    encode,
)

RECEIPT = LoadReceipt(
    tier="ssd",
    bytes=5,
    queue_s=0.5,
    read_s=1.0,
    attach_s=0.0,
    direct_io=True,
    verified=True,
    throttle_bytes_per_second=0,
)
IMAGE = ImageStatus(path="/a é", bytes=4096, state="loading", leases=2, read_bytes=3, pinned=True)
STATUS = StoreStatus(
    images=(IMAGE,),
    dram_bytes=1 << 40,
    used_bytes=2,
    leased_bytes=1,
    queue_depth=1,
    throttle_bytes_per_second=7,
    bandwidth_bytes_per_second={"ssd": 1.5e9},
)


@pytest.mark.parametrize(
    "request_",
    [
        Attach(id=1, path="/a"),
        Prefetch(id=2, path="/a"),
        Evict(id=3, path="/a"),
        GetStatus(id=4),
        Pin(id=7, path="/a"),
        Unpin(id=8, path="/a"),
        GetEstimate(id=9, path="/a"),
        Cancel(id=5),
        Release(image_id=6),
    ],
)
def test_requests_survive_the_link(request_: Request) -> None:
    assert decode_request(encode(request_)) == request_


@pytest.mark.parametrize(
    "reply",
    [
        Attached(
            id=1,
            image_id=2,
            memory_bytes=3,
            extents=(Extent(file_name="/a", offset=0, bytes=3),),
            receipt=RECEIPT,
        ),
        Prefetching(id=1, image=IMAGE),
        Pinned(id=1, image=IMAGE),
        Unpinned(id=1, images=2),
        Estimated(id=1, estimate=Estimate(tier="page_cache", queue_s=0.5, read_s=1.0, total_s=1.5, is_measured=False)),
        Evicted(id=1, images=2),
        Status(id=1, status=STATUS),
        Failed(id=1, error="StoreFull", message="…"),
    ],
)
def test_replies_survive_the_link(reply: Reply) -> None:
    assert decode_reply(encode(reply)) == reply


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 60_000,
        b'{"kind":"Nothing"}',
        b'{"kind":["Attach"]}',
        b'{"kind":"Attached","id":1}',
        b'{"kind":"Attach","id":1}',
        b'{"kind":"Attach","id":1,"path":"/a","more":1}',
        b'{"kind":"Attach","id":"1","path":"/a"}',
        b'{"kind":"Attach","id":true,"path":"/a"}',
        b'{"kind":"Attach","id":1.0,"path":"/a"}',
        b'{"kind":"Attach","id":1,"path":null}',
    ],
)
def test_malformed_requests_are_refused(payload: bytes) -> None:
    with pytest.raises(StoreProtocolError):
        decode_request(payload)


def test_a_state_outside_the_protocol_is_refused() -> None:
    payload = encode(Prefetching(id=1, image=IMAGE)).replace(b"loading", b"exploding")

    with pytest.raises(StoreProtocolError, match=r"Prefetching\.image\.state"):
        decode_reply(payload)
