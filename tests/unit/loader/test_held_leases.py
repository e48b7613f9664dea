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
        self.is_lost = False

    def post(self, request: Request) -> bool:
        if not self.is_lost:
            self.posted.append(request)
        return not self.is_lost


class Teller:
    """Counts how often it was asked to tell the store later."""

    def __init__(self) -> None:
        self.asked = 0

    def tell_later(self) -> None:
        self.asked += 1


def test_a_lease_lasts_as_long_as_its_memory_and_leaves_nothing_behind() -> None:
    link = RecordedLink()
    teller = Teller()
    leases = HeldLeases(cast("StoreLink", link), teller.tell_later)
    for image_id in (1, 2):
        memory = [Memory(), Memory()]
        leases.hold(Release(image_id=image_id), memory)  # type: ignore[arg-type]
        assert leases.arena_counts == (LeaseCount(image_id=image_id, count=1),)
        memory.clear()

    assert link.posted == [Release(image_id=1), Release(image_id=2)]
    assert not leases._counts
    assert teller.asked == 0


def test_the_first_end_that_the_store_cannot_be_told_of_has_it_told_later() -> None:
    link, teller = RecordedLink(), Teller()
    leases = HeldLeases(cast("StoreLink", link), teller.tell_later)
    memories = [[Memory()] for _ in range(3)]
    for image_id, memory in enumerate(memories):
        leases.hold(Release(image_id=image_id), memory)  # type: ignore[arg-type]
    link.is_lost = True
    memories[0].clear()
    memories[1].clear()
    assert teller.asked == 1
    assert leases.has_untold

    next_link = RecordedLink()
    leases.reconnect(cast("StoreLink", next_link), leases.arena_counts, ())
    assert not leases.has_untold
    memories[2].clear()

    assert teller.asked == 1
    assert next_link.posted == [Release(image_id=2)]
