from serverless_triton.loader.restarts import LAST_PAUSE_S, MAX_QUICK_DEATHS, STEADY_S, Restarts


def test_the_first_restart_is_at_once_and_later_ones_wait_longer() -> None:
    restarts = Restarts()
    pauses = [restarts.pause_after(0.1) for _ in range(8)]

    assert pauses[:4] == [0.0, 0.05, 0.1, 0.2]
    assert pauses[-1] == LAST_PAUSE_S


def test_who_keeps_dying_is_given_up() -> None:
    restarts = Restarts()
    pauses = [restarts.pause_after(0.1) for _ in range(MAX_QUICK_DEATHS + 1)]

    assert None not in pauses[:-1]
    assert pauses[-1] is None


def test_who_lived_long_enough_starts_afresh() -> None:
    restarts = Restarts()
    for _ in range(MAX_QUICK_DEATHS):
        restarts.pause_after(0.1)

    assert restarts.pause_after(STEADY_S) == 0.0
    assert restarts.pause_after(0.1) == 0.05
