import pytest

from serverless_triton.loader.errors import StoreProtocolError
from serverless_triton.loader.layout import Extent, Piece
from serverless_triton.loader.messages import decode_reply, decode_request, encode
from serverless_triton.loader.receipts import Estimate, LoadReceipt
from serverless_triton.loader.replies import (
    ArenaMapped,
    Attached,
    DeviceAttached,
    DeviceFile,
    DevicesReclaimed,
    Estimated,
    Evicted,
    Failed,
    Pinned,
    Prefetching,
    Progress,
    Reclaimed,
    Reply,
    Status,
    Unpinned,
)
from serverless_triton.loader.requests import (
    Attach,
    AttachDevice,
    Cancel,
    Evict,
    GetEstimate,
    GetStatus,
    LeaseCount,
    MapArena,
    Pin,
    Prefetch,
    Reclaim,
    ReclaimDevices,
    Release,
    ReleaseDevice,
    Request,
    Unpin,
)
from serverless_triton.loader.store_status import (
    ArenaStatus,
    DeviceImageStatus,
    DeviceStatus,
    ImageStatus,
    QueueStatus,
    SsdCacheStatus,
    StoreStatus,
)

RECEIPT = LoadReceipt(
    tier="ssd",
    bytes=5,
    queue_s=0.5,
    read_s=1.0,
    copy_s=0.25,
    attach_s=0.0,
    direct_io=True,
    verified=True,
    scattered=False,
    throttle_bytes_per_second=0,
)
ESTIMATE = Estimate(tier="page_cache", queue_s=0.5, read_s=1.0, copy_s=0.0, total_s=1.5, is_measured=False)
IMAGE = ImageStatus(
    path="/a é",
    bytes=4096,
    state="loading",
    leases=2,
    orphaned_leases=1,
    read_bytes=3,
    pinned=True,
    scattered=False,
)
ARENA = ArenaStatus(
    kind="tmpfs",
    page_bytes=1 << 21,
    interleaved_nodes=(0, 1),
    prefaulted_bytes=7,
    free_bytes=5,
    quarantined_bytes=1,
    largest_free_bytes=3,
    fragmentation=0.4,
)
QUEUE = QueueStatus(
    device="disk:5",
    running="/a",
    waiting_loads=1,
    prefetches=2,
    paused_loads=1,
    unread_bytes=9,
    bandwidth_bytes_per_second={"ssd": 1.5e9},
)
DEVICE = DeviceStatus(
    device="GPU-1",
    budget_bytes=90,
    used_bytes=40,
    leased_bytes=30,
    held_bytes=10,
    images=(DeviceImageStatus(path="/a", bytes=30, state="ready", leases=2),),
    attaches=5,
    copies=3,
    failed_copies=1,
    copied_bytes=120,
    copy_s=0.5,
    copy_bytes_per_second=2e9,
)
STATUS = StoreStatus(
    images=(IMAGE,),
    arena=ARENA,
    queues=(QUEUE,),
    devices=(DEVICE,),
    dram_bytes=1 << 40,
    used_bytes=2,
    leased_bytes=1,
    queue_depth=1,
    throttle_bytes_per_second=7,
    remote_throttle_bytes_per_second=8,
    bandwidth_bytes_per_second={"ssd": 1.5e9},
    ssd_cache=SsdCacheStatus(capacity_bytes=5, used_bytes=4, entries=3, urls=("https://a/b",), problem="p"),
)


@pytest.mark.parametrize(
    "request_",
    [
        Attach(id=1, path="/a", session="s", progress=True),
        MapArena(id=10),
        Reclaim(id=11, arena_id="abc", session="s", leases=(LeaseCount(image_id=3, count=2),)),
        Prefetch(id=2, path="/a"),
        Evict(id=3, path="/a"),
        GetStatus(id=4),
        Pin(id=7, path="/a"),
        Unpin(id=8, path="/a"),
        GetEstimate(id=9, path="/a", device=""),
        AttachDevice(id=12, path="/a", device="GPU-1", session="s", progress=False),
        ReclaimDevices(id=13, session="s", leases=(LeaseCount(image_id=3, count=2),)),
        ReleaseDevice(image_id=14),
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
            arena_id="abc",
            extents=(Extent(file_name="/a", bytes=3, pieces=(Piece(offset=8192, length=4096),)),),
            receipt=RECEIPT,
        ),
        ArenaMapped(id=1, arena_id="abc", bytes=1 << 40),
        Reclaimed(id=1, arena_id="abc", leases=()),
        Progress(id=1, bytes_done=2, bytes_total=3, bytes_ahead=4),
        Prefetching(id=1, image=IMAGE),
        Pinned(id=1, image=IMAGE),
        Unpinned(id=1, images=2),
        Estimated(
            id=1,
            estimate=Estimate(tier="page_cache", queue_s=0.5, read_s=1.0, copy_s=0.0, total_s=1.5, is_measured=False),
        ),
        DeviceAttached(
            id=1,
            image_id=2,
            device="GPU-1",
            memory_bytes=1 << 21,
            files=(DeviceFile(file_name="/a", offset=4096, bytes=3),),
            receipt=RECEIPT,
        ),
        DevicesReclaimed(id=1, leases=()),
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
        b'{"kind":"Pin","id":1,"path":"/a","more":1}',
        b'{"kind":"Pin","id":"1","path":"/a"}',
        b'{"kind":"Pin","id":true,"path":"/a"}',
        b'{"kind":"Pin","id":1.0,"path":"/a"}',
        b'{"kind":"Pin","id":1,"path":null}',
        b'{"kind":"Reclaim","id":1,"arena_id":"a","session":"s","leases":[{"image_id":1}]}',
        b'{"kind":"Reclaim","id":1,"arena_id":"a","session":"s","leases":{}}',
    ],
)
def test_malformed_requests_are_refused(payload: bytes) -> None:
    with pytest.raises(StoreProtocolError):
        decode_request(payload)


def test_a_state_outside_the_protocol_is_refused() -> None:
    payload = encode(Prefetching(id=1, image=IMAGE)).replace(b"loading", b"exploding")

    with pytest.raises(StoreProtocolError, match=r"Prefetching\.image\.state"):
        decode_reply(payload)
