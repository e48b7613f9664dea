import pytest

from serverless_triton.loader import _core
from serverless_triton.loader.prefaulter import Prefaulter, Step, rest_after

MEBIBYTE = 1 << 20


def test_it_rests_as_long_as_it_worked_where_nobody_else_did() -> None:
    assert rest_after(Step(wall_s=0.01, cpu_s=0.01)) == pytest.approx(0.01)


def test_it_rests_much_longer_where_it_had_to_wait_for_a_processor() -> None:
    assert rest_after(Step(wall_s=0.02, cpu_s=0.01)) == pytest.approx(0.07)


def test_clocks_that_disagree_do_not_shorten_its_rest() -> None:
    assert rest_after(Step(wall_s=0.01, cpu_s=0.02)) == pytest.approx(0.01)


def test_all_of_an_arena_has_memory_in_the_end() -> None:
    arena = _core.Arena(6 * MEBIBYTE, "4k")
    prefaulter = Prefaulter(arena)
    prefaulter.start()
    prefaulter._thread.join(timeout=60)

    assert prefaulter.prefaulted_bytes == arena.bytes


def test_it_takes_nothing_while_it_is_paused() -> None:
    prefaulter = Prefaulter(_core.Arena(6 * MEBIBYTE, "4k"))
    prefaulter.pause()
    prefaulter.start()

    prefaulter.stop()

    assert prefaulter.prefaulted_bytes == 0
    assert not prefaulter._thread.is_alive()


def test_one_that_never_started_can_be_stopped() -> None:
    prefaulter = Prefaulter(_core.Arena(2 * MEBIBYTE, "4k"))

    prefaulter.stop()
