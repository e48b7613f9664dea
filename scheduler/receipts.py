"""What every start took and why: receipts and their critical path (decision 13).

Pure: times come in as seconds on the scheduler's monotonic clock. The relay writes receipts, the estimator and people
read them.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from serverless_triton.scheduler.admission import Comparison, Exactness, ServerName, Span, StartTerms, StreamId

UNEXPLAINED = "unexplained"
Kind = Literal["warm", "cold", "parked", "resumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of the critical path, owned by one span or by none."""

    name: str
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One start of a stream on a replica, from the request (or the death before a resume) to its first token."""

    stream: StreamId
    model: str
    server: ServerName
    kind: Kind
    tier: str | None  # None: the replica ran already
    bytes: int
    predicted_s: float | None
    start_s: float
    first_token_s: float
    spans: tuple[Span, ...]
    exactness: Exactness | None = None  # of the replica's engine; None: its server has not told
    comparison: Comparison | None = None  # of the replica's start, until it was ready; None: it ran already

    @property
    def actual_s(self) -> float:
        return self.first_token_s - self.start_s

    @property
    def path(self) -> tuple[Segment, ...]:
        return critical_path(self.spans, self.start_s, self.first_token_s)


def critical_path(spans: Iterable[Span], start_s: float, end_s: float) -> tuple[Segment, ...]:
    """Exclusive segments that tile [start_s, end_s], found from the end: whatever ended last is what was waited for.

    A span's time belongs to its children (`parent` names it) as far as they gated it, the rest to itself. Of two that
    run side by side only the one that ended later is on the path. What no span explains is "unexplained".
    """
    children: dict[str | None, list[Span]] = defaultdict(list)
    known = {span.name for span in spans}
    for span in spans:
        if span.end_s > span.start_s:
            children[span.parent if span.parent in known and span.parent != span.name else None].append(span)
    found: list[Segment] = []
    _walk(None, start_s, end_s, children, found)
    return tuple(_merged(reversed(found)))


def _walk(
    owner: str | None, low_s: float, high_s: float, children: Mapping[str | None, Sequence[Span]], found: list[Segment]
) -> None:
    """Appends the segments of [low_s, high_s], last first, that belong to `owner` and what is under it."""
    until_s = high_s
    while until_s > low_s:
        running = [span for span in children.get(owner, ()) if span.start_s < until_s and span.end_s > low_s]
        gate = max(running, key=lambda s: (min(s.end_s, until_s), s.start_s, -s.end_s, s.name), default=None)
        gate_end_s = low_s if gate is None else min(gate.end_s, until_s)
        if gate_end_s < until_s:
            found.append(Segment(name=owner or UNEXPLAINED, start_s=gate_end_s, end_s=until_s))
        if gate is None:
            return
        gate_start_s = max(low_s, gate.start_s)
        _walk(gate.name, gate_start_s, gate_end_s, children, found)
        until_s = gate_start_s


def _merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Neighbours of one name as one."""
    for name, group in groupby(segments, key=lambda segment: segment.name):
        run = list(group)
        yield Segment(name=name, start_s=run[0].start_s, end_s=run[-1].end_s)


class ReceiptBook:
    """The receipts of the last `capacity` streams; a full one drops the oldest of the tenant with most of them."""

    def __init__(self, capacity: int = 1000) -> None:
        self._capacity = capacity
        self._streams: OrderedDict[StreamId, tuple[str, tuple[Receipt, ...]]] = OrderedDict()
        self._by_tenant: dict[str, OrderedDict[StreamId, None]] = {}

    def add(self, receipt: Receipt, tenant: str = "") -> None:
        """`tenant` is the stream's."""
        _, before = self._streams.pop(receipt.stream, (tenant, ()))
        self._streams[receipt.stream] = tenant, (*before, receipt)
        own = self._by_tenant.setdefault(tenant, OrderedDict())
        own[receipt.stream] = None
        own.move_to_end(receipt.stream)
        if len(self._streams) > self._capacity:
            self._drop_one()

    def _drop_one(self) -> None:
        tenant = max(self._by_tenant, key=lambda name: len(self._by_tenant[name]))
        stream, _ = self._by_tenant[tenant].popitem(last=False)
        del self._streams[stream]
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]

    def of(self, stream: StreamId, tenant: str | None = None) -> tuple[Receipt, ...]:
        """A stream's receipts, first start first; empty where it has none (any more), or is another tenant's.

        None: of whatever tenant.
        """
        owner, receipts = self._streams.get(stream, ("", ()))
        return receipts if tenant is None or tenant == owner else ()

    def newest(self, limit: int = 100) -> tuple[Receipt, ...]:
        """Newest first."""
        found: list[Receipt] = []
        for _, receipts in reversed(self._streams.values()):
            if len(found) >= limit:
                break
            found.extend(reversed(receipts))
        return tuple(found[:limit])


def to_json(receipt: Receipt) -> dict[str, Any]:
    """Times relative to the request, in seconds."""
    body = asdict(receipt)
    del body["start_s"], body["first_token_s"]
    body["actual_s"] = receipt.actual_s
    body["spans"] = [{**_relative(span, receipt.start_s), "parent": span.parent} for span in receipt.spans]
    if receipt.comparison is not None:
        for name, terms in (("predicted", receipt.comparison.predicted), ("actual", receipt.comparison.actual)):
            body["comparison"][name]["total_s"] = terms.total_s
    body["critical_path"] = [_relative(segment, receipt.start_s) for segment in receipt.path]
    return body


def from_json(body: Mapping[str, Any]) -> Receipt:
    """The receipt that `to_json` wrote, its clock beginning with the request. Raises KeyError, TypeError."""
    spans = tuple(
        Span(name=s["name"], start_s=s["start_s"], end_s=s["end_s"], parent=s["parent"]) for s in body["spans"]
    )
    told = body.get("exactness")
    same = {name: body[name] for name in ("stream", "model", "server", "kind", "tier", "bytes", "predicted_s")}
    return Receipt(
        **same,
        start_s=0.0,
        first_token_s=body["actual_s"],
        spans=spans,
        exactness=None if told is None else Exactness(**told),
        comparison=None if body.get("comparison") is None else _comparison(body["comparison"]),
    )


def _comparison(body: Mapping[str, Any]) -> Comparison:
    predicted, actual = (
        StartTerms(**{name: seconds for name, seconds in body[side].items() if name != "total_s"})
        for side in ("predicted", "actual")
    )
    return Comparison(predicted=predicted, uncertainty_s=body["uncertainty_s"], actual=actual)


def _relative(stretch: Span | Segment, origin_s: float) -> dict[str, Any]:
    return {
        "name": stretch.name,
        "start_s": stretch.start_s - origin_s,
        "end_s": stretch.end_s - origin_s,
        "duration_s": stretch.end_s - stretch.start_s,
    }


_COLUMNS = ("stream", "model", "server", "kind", "tier", "size", "predicted", "ready", "first token")
_BAR_WIDTH = 48
_SHOWN_FROM_S = 0.001


def format_table(receipts: Iterable[Receipt]) -> str:
    """A table for terminals, and under every start that was not warm its critical path as a bar."""
    receipts = tuple(receipts)
    rows = [_COLUMNS, *(_row(receipt) for receipt in receipts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    out = [lines[0], "  ".join("─" * width for width in widths)]
    for line, receipt in zip(lines[1:], receipts, strict=True):
        out.append(line)
        if receipt.kind != "warm":
            out.append(_waterfall(receipt))
    return "\n".join(out)


def _row(receipt: Receipt) -> tuple[str, ...]:
    compared = receipt.comparison
    predicted = "–" if receipt.predicted_s is None else f"{receipt.predicted_s:.3f} s"
    if compared is not None:
        predicted = f"{receipt.predicted_s:.3f} ± {compared.uncertainty_s:.3f} s"
    ready = "–" if compared is None else f"{compared.actual.total_s:.3f} s"
    size = f"{receipt.bytes / 1e6:.0f} MB" if receipt.bytes else "–"
    actual = f"{receipt.actual_s:.3f} s"
    return (
        receipt.stream[:8],
        receipt.model,
        receipt.server,
        receipt.kind,
        receipt.tier or "–",
        size,
        predicted,
        ready,
        actual,
    )


def _waterfall(receipt: Receipt) -> str:
    path = [segment for segment in receipt.path if segment.duration_s >= _SHOWN_FROM_S]
    total_s = receipt.actual_s or 1.0
    shades = "█▓▒░"
    bar = "".join(
        shades[index % len(shades)] * max(1, round(segment.duration_s / total_s * _BAR_WIDTH))
        for index, segment in enumerate(path)
    )
    legend = " · ".join(f"{segment.name} {segment.duration_s * 1000:.0f} ms" for segment in path)
    return f"  {bar}\n  {legend}"
