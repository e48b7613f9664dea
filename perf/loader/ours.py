"""Our own rows: a load by the store from disk, with hashes and without, and an attach of what the store holds.

Each brings the store to the state that the row is about, and has the receipt confirm it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from perf.harness import InvalidRound
from perf.loader.heat import Outcome
from perf.loader.store_process import StoreProcess
from perf.loader.track import WARM_LOADS, Track, measurement, median_of
from perf.results import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class OurRows:
    """On one store."""

    track: Track
    store: StoreProcess

    def cold(self, form: str) -> Measurement:
        """Neither in the store nor in the page cache; every byte is compared with its hash."""
        return measurement(self._cold(form, verified=True))

    def unhashed(self) -> Measurement:
        """As `cold`, of a checkpoint without hashes beside it."""
        return measurement(self._cold("unhashed", verified=False))

    def _cold(self, form: str, *, verified: bool) -> Outcome:
        self._evict()
        outcome = self._attach("attach", form, "cold", {})
        _check(outcome, tier="ssd", verified=verified)
        return outcome

    def warm(self) -> Measurement:
        """In the store; the process is new to it."""
        self._hold("single")
        return median_of(self._warm, WARM_LOADS)

    def _warm(self) -> Measurement:
        outcome = self._attach("attach", "single", "any", {})
        _check(outcome, tier="dram")
        return measurement(outcome)

    def premapped(self) -> Measurement:
        """The process maps the arena before the checkpoint is loaded into it, and attaches after that."""
        self._evict()
        path = str(self.track.forms.path("single"))
        outcome = self._attach("premapped_attach", "single", "any", {"path": path}, sum_plain=True)
        _check(outcome, tier="dram")
        assert outcome.plain_sum_s is not None
        beyond_s = outcome.elapsed_s - outcome.plain_sum_s
        return measurement(outcome, plain_sum_s=outcome.plain_sum_s, beyond_plain_sum_s=beyond_s)

    def _attach(self, loader: str, form: str, cache: Any, arguments: dict[str, Any], **more: Any) -> Outcome:
        arguments = {"socket": str(self.store.socket), **arguments}
        processes = self.store.processes()
        return self.track.run(loader, form, cache, arguments=arguments, store_processes=processes, **more)

    def _evict(self) -> None:
        with self.store.connect() as store:
            for image in store.status().images:
                store.evict(image.path)

    def _hold(self, form: str) -> None:
        path = str(self.track.forms.path(form))
        with self.store.connect() as store:
            for image in store.status().images:
                if image.path != path:
                    store.evict(image.path)
            store.load(path)


def _check(outcome: Outcome, *, tier: str, verified: bool | None = None) -> None:
    """Raises InvalidRound where the load was another one than the row is about."""
    receipt = outcome.receipt or {}
    if receipt.get("tier") != tier:
        raise InvalidRound(f"loaded from {receipt.get('tier')} instead of {tier}")
    if verified is not None and receipt.get("verified") != verified:
        raise InvalidRound(f"verified is {receipt.get('verified')} instead of {verified}")
