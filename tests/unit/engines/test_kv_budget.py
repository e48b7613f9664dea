"""Slots and tokens: who gets them, who does not, and what is free again."""

from __future__ import annotations

from serverless_triton.backend.engines.kv_budget import KVBudget


def budget(total_tokens: int = 300, slots: int = 3, max_sequence_tokens: int = 200) -> KVBudget:
    return KVBudget(total_tokens=total_tokens, slots=slots, max_sequence_tokens=max_sequence_tokens)


def test_tokens_count_in_blocks_up_to_a_full_sequence() -> None:
    kv = budget()
    slot = kv.take(1)
    assert (slot, kv.used_tokens) == (0, 64)
    assert kv.grow(0, 64)
    assert kv.used_tokens == 64
    assert kv.grow(0, 65)
    assert kv.used_tokens == 128
    assert kv.grow(0, 200)
    assert kv.used_tokens == 200


def test_what_does_not_fit_is_not_taken() -> None:
    kv = budget()
    assert kv.take(200) == 0
    assert kv.take(65) is None
    assert kv.take(64) == 1
    assert not kv.grow(1, 65)
    assert kv.used_tokens == 264


def test_slots_run_out_before_memory_does() -> None:
    kv = budget(total_tokens=1000, slots=2)
    assert [kv.take(1) for _ in range(3)] == [0, 1, None]


def test_what_could_be_taken_is_what_freed_slots_would_leave_room_for() -> None:
    kv = budget(slots=2)
    assert [kv.take(200), kv.take(64)] == [0, 1]
    assert [kv.could_take(200, freed) for freed in ([], [1], [0], [0, 1])] == [False, False, True, True]
    assert not kv.could_take(1, [])
    assert kv.used_tokens == 264


def test_the_lowest_slot_that_is_free_comes_first() -> None:
    kv = budget()
    for _ in range(3):
        kv.take(1)
    kv.free(2)
    kv.free(0)
    assert kv.used_tokens == 64
    assert kv.take_left() == [2, 0]
    assert kv.take_left() == []
    assert [kv.take(1), kv.take(1)] == [0, 2]
