"""What a client counts of its leases."""

from typing import cast

from serverless_triton.loader.held_leases import HeldLeases
from serverless_triton.loader.requests import LeaseCount, Release, Request
from serverless_triton.loader.store_link import StoreLink


class Memory:
    """Something that can be weakly referred to."""


class RecordedLink:
    def __init__(self) -> None:
        self.posted: list[Request] = []

    def post(self, request: Request) -> None:
        self.posted.append(request)


def test_a_lease_lasts_as_long_as_its_memory_and_leaves_nothing_behind() -> None:
    link = RecordedLink()
    leases = HeldLeases(cast("StoreLink", link))
    for image_id in (1, 2):
        memory = [Memory(), Memory()]
        leases.hold(Release(image_id=image_id), memory)  # type: ignore[arg-type]
        assert leases.arena_counts == (LeaseCount(image_id=image_id, count=1),)
        memory.clear()

    assert link.posted == [Release(image_id=1), Release(image_id=2)]
    assert not leases._counts
