"""A run of the gateway benchmark for people: tables in Markdown, from the raw rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from perf.formulas import PairedDifference, median_of
from perf.gateway.rows import CONCURRENCY, DIRECT, FLOOD, GATEWAY, IDLE, PACED, RATE, RELAY_1, RELAY_8
from perf.results import Round, Run

TITLES = {
    PACED: "8 streams, 50 tokens a second each",
    FLOOD: "16 streams, as fast as it goes",
    IDLE: "2,000 streams, a token every 2 s",
}
RELAYS = {RELAY_1: "1 token a message", RELAY_8: "8 tokens a message"}


def documents(run: Run) -> Mapping[str, str]:
    return {".md": markdown(run)}


def markdown(run: Run) -> str:
    """Medians over the valid rounds; what the gateway adds is the median of the rounds' differences."""
    rounds = run.valid_rounds
    head = f"{run.started_at}, {run.hardware_class}, {len(rounds)} rounds, seed {run.seed}, at {run.commit}"
    return "\n\n".join([head, *_sections(rounds)]) + "\n"


def _sections(rounds: Sequence[Round]) -> Iterator[str]:
    yield "**From a token's making in the engine to its client, ms: median (99th percentile)**"
    yield _table(
        ("direct", "through the gateway", "added"),
        [(title, _latencies(rounds, load)) for load, title in TITLES.items()],
    )
    yield "**What is relayed**"
    columns = ("messages/s", "tokens a message", "CPU of the gateway, µs a message", "memory of the gateway, MB")
    rows = {f"{load}.{way}": f"{title}, {_SAID[way]}" for load, title in TITLES.items() for way in _SAID}
    relays = {row: f"{title}, a gateway alone before a repeater" for row, title in RELAYS.items()}
    yield _table(columns, [(title, _relayed(rounds, row)) for row, title in {**rows, **relays}.items()])
    for kind, title in ((CONCURRENCY, "requests at a time"), (RATE, "requests a second")):
        yield f"**perf_analyzer, {title}: first response at the median (99th percentile), ms; responses/s**"
        points = _points(rounds, kind)
        rows_of_kind = [(_SAID[way], [_point(rounds, f"{kind}.{way}", point) for point in points]) for way in _SAID]
        yield _table([point.removeprefix(kind) for point in points], rows_of_kind)


_SAID = {DIRECT: "direct", GATEWAY: "through the gateway"}


def _table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join([title, *cells])} |" for title, cells in rows)])


def _latencies(rounds: Sequence[Round], load: str) -> list[str]:
    direct, gateway = f"{load}.{DIRECT}", f"{load}.{GATEWAY}"
    added = [PairedDifference(metric=f"latency_p{share}_s", of=gateway, to=direct).value(rounds) for share in (50, 99)]
    return [
        *(_pair(rounds, row, "latency") for row in (direct, gateway)),
        f"{_scaled(added[0], 1e3)} ({_scaled(added[1], 1e3)})",
    ]


def _relayed(rounds: Sequence[Round], row: str) -> list[str]:
    scales = {"messages_per_s": 1.0, "message_tokens": 1.0, "cpu_per_message_s": 1e6, "gateway_bytes": 1e-6}
    return [_scaled(median_of(rounds, row, metric), scale) for metric, scale in scales.items()]


def _points(rounds: Sequence[Round], kind: str) -> list[str]:
    """Of a sweep that was measured, smallest first: its figures begin with them."""
    names = {
        name.split("_")[0]
        for round_ in rounds
        for row in (f"{kind}.{way}" for way in _SAID)
        if row in round_.measurements
        for name in round_.measurements[row].figures
        if name.startswith(kind)
    }
    return sorted(names, key=lambda name: int(name.removeprefix(kind)))


def _point(rounds: Sequence[Round], row: str, point: str) -> str:
    messages_per_s = median_of(rounds, row, f"{point}_messages_per_s")
    return f"{_pair(rounds, row, f'{point}_first_response')}; {_scaled(messages_per_s, 1.0)}"


def _pair(rounds: Sequence[Round], row: str, metric: str) -> str:
    p50, p99 = (_scaled(median_of(rounds, row, f"{metric}_p{share}_s"), 1e3) for share in (50, 99))
    return f"{p50} ({p99})"


def _scaled(value: float | None, scale: float) -> str:
    return "–" if value is None else f"{value * scale:.3g}" if abs(value * scale) < 100 else f"{value * scale:.0f}"
