"""The parked stubs of one server, as the scheduler knows them: READY in Triton, without an engine (decision 2).

The agent's news say which there are. A stub that was given to a start, or is being unloaded, is not parked any more,
even where news that were under way still say so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import ReplicaId

REMEMBERED_GONE = 4096


@dataclass(slots=True)
class ParkedStubs:
    """Models by stub; a stub is known by the id of the replica that it was last part of. Longest parked first."""

    _models: dict[ReplicaId, str] = field(default_factory=dict)
    _bytes: Mapping[ReplicaId, int] = field(default_factory=dict)
    _gone: OrderedDict[ReplicaId, None] = field(default_factory=OrderedDict)

    def __contains__(self, stub: ReplicaId) -> bool:
        return stub in self._models

    def shown(
        self, stubs: Mapping[ReplicaId, str], private_bytes: Mapping[ReplicaId, int]
    ) -> list[tuple[ReplicaId, str]]:
        """The agent's news: these are all, and what memory each holds. Returns those that were there before."""
        self._bytes = private_bytes
        before, there = self._models, {stub: model for stub, model in stubs.items() if stub not in self._gone}
        self._models = {stub: model for stub, model in before.items() if stub in there} | there
        return [(stub, model) for stub, model in before.items() if stub not in there]

    def drop(self, stub: ReplicaId) -> None:
        """It is used or unloaded from now on, whatever older news say."""
        self._models.pop(stub, None)
        self._gone[stub] = None
        while len(self._gone) > REMEMBERED_GONE:
            self._gone.popitem(last=False)

    def of_model(self, model: str) -> list[ReplicaId]:
        return [stub for stub, name in self._models.items() if name == model]

    def by_model(self) -> dict[str, ReplicaId]:
        """The one to use, which is the youngest: Triton replaced any older one."""
        return {model: stub for stub, model in self._models.items()}

    def beyond(self, limit: int, limit_bytes: int) -> list[tuple[ReplicaId, str]]:
        """The oldest, as far as they are too many or hold too much memory together, with their models."""
        stubs = self.items()
        excess = max(0, len(stubs) - limit)
        held = sum(self.bytes_of(stub) for stub, _ in stubs[excess:])
        while held > limit_bytes:
            held -= self.bytes_of(stubs[excess][0])
            excess += 1
        return stubs[:excess]

    def bytes_of(self, stub: ReplicaId) -> int:
        """What memory it held when the agent looked last."""
        return self._bytes.get(stub, 0)

    def items(self) -> list[tuple[ReplicaId, str]]:
        return list(self._models.items())
