"""Tells the control loop how many tokens this gateway's streams hold: what a move of them would have to recompute.

All that changed goes together, a few times a second and never with a token: nobody waits for it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from serverless_triton.scheduler.admission import Admission, StreamId
from serverless_triton.scheduler.journal import Journal

INTERVAL_S = 0.2


@dataclass(slots=True)
class ProgressReports:
    """Of the streams in `journal`; `run` until cancelled."""

    journal: Journal
    admission: Admission
    _told: dict[StreamId, tuple[int, int, int]] = field(default_factory=dict)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            self.tell()

    def tell(self) -> None:
        """What has changed since the last time; all of a stream that has moved."""
        now = {one.stream: (one.attempt, one.num_input_tokens, len(one.output_ids)) for one in self.journal}
        for stream, (attempt, input_tokens, output_tokens) in now.items():
            if output_tokens and self._told.get(stream) != (attempt, input_tokens, output_tokens):
                self.admission.progress(stream, input_tokens=input_tokens, output_tokens=output_tokens)
        self._told = now
