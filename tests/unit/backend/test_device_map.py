"""Which parts go to which device: plans by hand, and against a search through all of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import pytest

from serverless_triton.backend.device_map import DoesNotFit, Share, plan
from serverless_triton.backend.ledger import NoRoom


def share(device: str, parts: int, size: int) -> Share:
    return Share(device=device, parts=parts, bytes=size)


def test_a_model_that_fits_goes_to_the_device_that_is_left_with_the_least() -> None:
    assert plan([4, 3, 3], {"gpu0": 50, "gpu1": 10, "gpu2": 12}) == (share("gpu1", 3, 10),)


def test_equal_devices_are_taken_by_name() -> None:
    assert plan([4, 3], {"gpu1": 10, "gpu0": 10}) == (share("gpu0", 2, 7),)


def test_a_model_too_large_for_one_device_spans_several_in_order() -> None:
    assert plan([4, 3, 3, 3, 2], {"gpu0": 10, "gpu1": 9}) == (share("gpu0", 3, 10), share("gpu1", 2, 5))


def test_no_more_devices_are_taken_than_needed() -> None:
    shares = plan([5, 5, 5, 5], {"small0": 5, "small1": 5, "large0": 10, "large1": 10})
    assert [one.device for one in shares] == ["large0", "large1"]


def test_a_device_comes_first_where_only_that_fits() -> None:
    """The largest device first would leave a part of 5 for one with 4."""
    assert plan([4, 5, 5], {"gpu0": 10, "gpu1": 4}) == (share("gpu1", 1, 4), share("gpu0", 2, 10))


def test_a_tied_head_takes_nothing_and_needs_no_device_of_its_own() -> None:
    assert plan([6, 5, 1, 0], {"gpu0": 6, "gpu1": 6}) == (share("gpu0", 1, 6), share("gpu1", 3, 6))


def test_what_does_not_fit_is_refused_with_the_numbers_and_what_to_change() -> None:
    with pytest.raises(DoesNotFit) as refused:
        plan([8, 8], {"gpu0": 10, "gpu1": 7})
    assert str(refused.value) == (
        "16 bytes of device memory asked for, the largest of its 2 parts 8; free are 10 on gpu0, 7 on gpu1; "
        "lower kv_cache_bytes, or give the node more memory or another device"
    )
    assert isinstance(refused.value, NoRoom)


@pytest.mark.parametrize("seed", range(300))
def test_a_plan_is_found_where_there_is_one_and_takes_the_fewest_devices(seed: int) -> None:
    dice = random.Random(seed)
    parts = [dice.randint(0, 9) for _ in range(dice.randint(1, 7))]
    free = {f"gpu{number}": dice.randint(0, 16) for number in range(dice.randint(1, 4))}
    fewest = fewest_devices(parts, free)
    if fewest is None:
        with pytest.raises(DoesNotFit):
            plan(parts, free)
        return
    shares = plan(parts, free)
    assert len(shares) == fewest
    assert sum(one.parts for one in shares) == len(parts)
    assert len({one.device for one in shares}) == len(shares)
    begin = 0
    for one in shares:
        assert one.bytes == sum(parts[begin : begin + one.parts]) <= free[one.device]
        begin += one.parts


def fewest_devices(parts: Sequence[int], free: Mapping[str, int]) -> int | None:
    """By trying every order of every set of devices."""
    for count in range(1, len(free) + 1):
        if any(holds(parts, [free[name] for name in order]) for order in itertools.permutations(free, count)):
            return count
    return None


def holds(parts: Sequence[int], rooms: Sequence[int]) -> bool:
    rest = list(parts)
    for room in rooms:
        while rest and rest[0] <= room:
            room -= rest.pop(0)
    return not rest
