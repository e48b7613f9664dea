"""What is kept over restarts: saved where it changed, by the leader, and understood or left out."""

from __future__ import annotations

from typing import Any

import pytest

from serverless_triton.scheduler.foreign import ForeignModel
from serverless_triton.scheduler.learned import ASSUMED_LOAD_S, LearnedModels
from serverless_triton.scheduler.persistence import Kept, Persistence
from serverless_triton.scheduler.state.protocol import FakeStateStore

DECLARED = ForeignModel(max_streams=1, device_bytes=None, host_bytes=None)


class Counter:
    """A thing that is kept."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def from_json(self, value: Any) -> None:
        if not isinstance(value, int):
            raise TypeError("must be a whole number")
        self.value = value

    def kept(self) -> Kept:
        return Kept(name="counter", to_json=lambda: self.value, from_json=self.from_json)


async def begun(store: FakeStateStore, counter: Counter, **options: Any) -> Persistence:
    persistence = Persistence(store, [counter.kept()], **options)
    await persistence.load()
    return persistence


async def test_what_changed_comes_back_in_the_next_reign() -> None:
    store, counter, successor = FakeStateStore(), Counter(), Counter()
    persistence = await begun(store, counter)
    counter.value = 7
    await persistence.save()
    await begun(store, successor)
    assert successor.value == 7


async def test_what_has_not_changed_is_not_written_again() -> None:
    store, counter = FakeStateStore(), Counter(3)
    for _ in range(2):
        persistence = await begun(store, counter)
        await persistence.save()
        await persistence.save()
    assert store.writes == 1


async def test_a_document_that_is_not_understood_is_left_out_and_replaced() -> None:
    store, counter = FakeStateStore(), Counter(5)
    await store.put("kept/counter", "five")
    persistence = await begun(store, counter)
    assert counter.value == 5
    await persistence.save()
    assert store.documents["kept/counter"].value == 5


async def test_whoever_may_not_act_saves_nothing() -> None:
    store = FakeStateStore()
    persistence = await begun(store, Counter(1), may_save=lambda: False)
    await persistence.save()
    assert store.documents == {}


async def test_a_store_that_is_away_gets_it_once_it_is_back() -> None:
    store, counter = FakeStateStore(), Counter(1)
    persistence = await begun(store, counter)
    store.away = True
    await persistence.save()
    store.away = False
    await persistence.save()
    assert store.documents["kept/counter"].value == 1


async def test_a_leaders_word_comes_after_its_predecessors_last_one() -> None:
    store, counter = FakeStateStore(), Counter(1)
    persistence = await begun(store, counter)
    await store.put("kept/counter", 99)  # by the one before, late
    await persistence.save()
    await persistence.save()
    assert store.documents["kept/counter"].value == 1


def test_what_loads_of_foreign_models_taught_comes_back() -> None:
    learned, successor = LearnedModels(), LearnedModels()
    learned.loaded(learned.view("m", DECLARED), 7.0, 1000)
    successor.from_json(learned.to_json())
    assert (successor.view("m", DECLARED).load_s, successor.view("m", DECLARED).host_bytes) == (7.0, 1000)


@pytest.mark.parametrize("kept", [[], {"load_s": 3}, {"load_s": {"m": -1}}, {"host_bytes": {"m": "1"}}])
def test_learned_figures_that_are_none_are_refused_and_change_nothing(kept: Any) -> None:
    learned = LearnedModels()
    with pytest.raises((ValueError, TypeError), match=r"give|must be"):
        learned.from_json(kept)
    assert learned.view("m", DECLARED).load_s == ASSUMED_LOAD_S
