"""Stubs that are READY in Triton and wait for an engine (decision 2): which there are, and who takes one.

Each is known by the id of the replica that it was last part of. It holds no memory of the device, so the ledger does
not know it. How many of them a server keeps, and in how much memory, is the scheduler's to decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from serverless_triton.backend.async_channel import AsyncChannel
from serverless_triton.backend.messages import REPLICA_PARAMETER


class NotParked(Exception):
    """There is no such stub, or none that could serve this configuration of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedStub:
    """A stub without an engine, with the configuration that Triton started it with."""

    replica: str
    model: str
    parameters: Mapping[str, str]
    channel: AsyncChannel


class ParkedStubs:
    """The parked stubs of one node."""

    def __init__(self) -> None:
        self._stubs: dict[str, ParkedStub] = {}

    def __iter__(self) -> Iterator[ParkedStub]:
        return iter(self._stubs.values())

    def __contains__(self, replica: str) -> bool:
        return replica in self._stubs

    def park(self, stub: ParkedStub) -> None:
        self._stubs[stub.replica] = stub

    def take(self, replica: str, model: str, parameters: Mapping[str, str]) -> ParkedStub:
        """The stub, the caller's from now on. Raises NotParked; a stub that serves another configuration stays."""
        stub = self._stubs.get(replica)
        if stub is None or stub.model != model:
            raise NotParked(f"the parked stub {replica} of '{model}' is gone")
        if _without_name(stub.parameters) != _without_name(parameters):
            raise NotParked(f"the parked stub {replica} of '{model}' was started with another configuration")
        return self._stubs.pop(replica)

    def forget(self, replica: str) -> None:
        """Idempotent."""
        self._stubs.pop(replica, None)

    def left(self, channel: AsyncChannel) -> bool:
        """A stub's process is gone: whether it was one of these."""
        gone = [stub.replica for stub in self if stub.channel is channel]
        for replica in gone:
            self.forget(replica)
        return bool(gone)


def _without_name(parameters: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if name != REPLICA_PARAMETER}
