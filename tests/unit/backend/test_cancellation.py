"""Triton is asked whether a request was cancelled only before its final response has begun: 2.51 crashes otherwise."""

from __future__ import annotations

import threading
from typing import Any

from tests.unit.backend.test_model import FINAL, WAIT_S, InferenceResponse, Sender, Stub, stub

__all__ = ["stub"]


class SlowSender(Sender):
    """Takes its time to answer, and notes what goes on at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answer = threading.Event(), threading.Event()
        self.is_asking = False
        self.sent_while_asked = False

    def is_cancelled(self) -> bool:
        assert not self.is_final, "Triton has forgotten this request"
        self.is_asking = True
        self.asked.set()
        self.answer.wait(WAIT_S)
        self.is_asking = False
        return False

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        self.sent_while_asked |= self.is_asking
        super().send(response, flags)


def flight(stub: Stub, sender: Sender) -> Any:
    return stub.module.InFlight(sender=sender, worker=None)


def test_a_final_response_waits_until_triton_has_said_whether_the_request_was_cancelled(stub: Stub) -> None:
    sender = SlowSender()
    request = flight(stub, sender)
    asking = threading.Thread(target=request.is_cancelled)
    asking.start()
    assert sender.asked.wait(WAIT_S)
    sending = threading.Thread(target=request.send, args=(InferenceResponse([]), True))
    sending.start()
    sending.join(0.1)
    sender.answer.set()
    for thread in (asking, sending):
        thread.join(WAIT_S)
    assert sender.next()[1] == FINAL
    assert not sender.sent_while_asked


def test_after_the_final_response_triton_is_not_asked_any_more(stub: Stub) -> None:
    sender = SlowSender()
    request = flight(stub, sender)
    request.send(InferenceResponse([]), True)
    assert request.is_cancelled() is False
    assert not sender.asked.is_set()


def test_a_cancelled_request_is_known_as_such(stub: Stub) -> None:
    sender = Sender()
    sender.cancelled = True
    assert flight(stub, sender).is_cancelled() is True
