from collections.abc import Callable

from serverless_triton.loader.timers import Timers


def test_calls_come_once_in_the_order_in_which_they_are_due() -> None:
    said: list[str] = []

    def say(word: str) -> Callable[[], None]:
        return lambda: said.append(word)

    timers = Timers()
    assert timers.next_due_s() is None
    timers.add(3.0, say("later"))
    timers.add(2.0, say("second"))
    timers.add(1.0, say("first"))
    assert timers.next_due_s() == 1.0
    for _ in range(2):
        for call in timers.take_due(2.0):
            call()

    assert said == ["first", "second"]
    assert timers.next_due_s() == 3.0
