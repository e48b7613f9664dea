"""The slots that outlive a daemon, torn at every byte that a kill could tear them at."""

import os

import pytest

from serverless_triton.loader import StoreError
from serverless_triton.loader.state_slots import HEADER_BYTES, StateSlots

SLOT_BYTES = 128


def test_nothing_is_read_before_the_first_write() -> None:
    assert StateSlots(bytearray(2 * SLOT_BYTES)).read() is None


def test_what_was_written_last_is_read_by_whoever_looks() -> None:
    memory = bytearray(2 * SLOT_BYTES)
    slots = StateSlots(memory)

    for payload in (b"one", b"", b"three", b"four" * 20):
        slots.write(payload)
        assert StateSlots(memory).read() == payload


@pytest.mark.parametrize("before", [None, b"", b"old", b"a much longer state than the next one"])
def test_a_write_torn_anywhere_leaves_the_old_state_or_the_new(before: bytes | None) -> None:
    memory = bytearray(2 * SLOT_BYTES)
    slots = StateSlots(memory)
    if before is not None:
        slots.write(b"older still")
        slots.write(before)
    old = bytes(memory)
    slots.write(b"the new state")
    new = bytes(memory)

    # Bytes may arrive from either end; the payload is always written before the header.
    for first, last in ((old, new), (new, old)):
        for cut in range(len(old) + 1):
            torn = bytearray(first[:cut] + last[cut:])
            assert StateSlots(torn).read() in (before, b"the new state")


def test_a_write_torn_before_its_last_byte_is_the_old_state() -> None:
    memory = bytearray(2 * SLOT_BYTES)
    slots = StateSlots(memory)
    slots.write(b"first")
    slots.write(b"old")
    old = bytes(memory)
    slots.write(b"new")
    changed = [i for i, (before, after) in enumerate(zip(old, memory, strict=True)) if before != after]

    for position in changed:
        torn = bytearray(memory)
        torn[position] = old[position]
        assert StateSlots(torn).read() == b"old"


def test_writing_goes_on_after_a_torn_write() -> None:
    memory = bytearray(2 * SLOT_BYTES)
    slots = StateSlots(memory)
    slots.write(b"one")
    slots.write(b"two")
    memory[SLOT_BYTES + HEADER_BYTES] ^= 1  # where "two" begins

    successor = StateSlots(memory)
    assert successor.read() == b"one"
    for payload in (b"three", b"four"):
        successor.write(payload)
        assert StateSlots(memory).read() == payload


@pytest.mark.parametrize("garbage", [b"\xff" * SLOT_BYTES, bytes(range(SLOT_BYTES))])
def test_garbage_is_no_state(garbage: bytes) -> None:
    assert StateSlots(bytearray(2 * garbage)).read() is None


def test_a_state_that_does_not_fit_is_refused_and_the_old_one_stays() -> None:
    slots = StateSlots(bytearray(2 * SLOT_BYTES))
    fits = b"x" * (SLOT_BYTES - HEADER_BYTES)
    slots.write(fits)

    with pytest.raises(StoreError, match=f"there is room for {len(fits)}"):
        slots.write(fits + b"x")

    assert slots.read() == fits


def test_a_forked_child_s_write_is_seen_by_its_parent_and_siblings() -> None:
    slots = StateSlots.create(4096)
    for payload in (b"first child", b"second child", b"third child"):
        child = os.fork()
        if child == 0:
            slots.write(payload)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert slots.read() == payload
