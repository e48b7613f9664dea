"""What starts, rooms and moves have taught about how long the next one takes (pure).

By server: how fast each tier's bytes come, what a start costs beside them, how long making room by parking takes. By
model: what its starts need beyond their server's cost, and what its moves cost by token. Every figure is learned online
by recursive least squares (`regression.py`), begins with a sane prior, and has a standard error.

The control loop observes, the views carry `figures`, and the state store keeps `to_json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serverless_triton.scheduler.admission import ServerName, StartState
from serverless_triton.scheduler.regression import Fit, Residuals, learn

VERSION = 1  # of the JSON form
GB = 1e9
STATES: tuple[StartState, ...] = ("cold", "parked")
TIERS = ("dram", "ssd", "remote")

# Before the first observation: a slow SSD, a network of 2 Gbit/s, DRAM as copied by one core.
ASSUMED_BYTES_PER_SECOND: Mapping[str, float] = {"dram": 20e9, "ssd": 1e9, "remote": 0.25e9}
ASSUMED_FIXED_S: Mapping[StartState, Mapping[str, float]] = {
    "cold": {"dram": 0.25, "ssd": 0.1, "remote": 0.1},
    "parked": {"dram": 0.06, "ssd": 0.06, "remote": 0.06},
}
ASSUMED_PARK_S = 0.05
ASSUMED_MIGRATION_S_PER_TOKEN, ASSUMED_MIGRATION_FIXED_S = 0.0005, 0.1
ATTACH_ERROR_S = 0.02  # what a read takes whatever its bytes: next to nothing
OFFSET_ERROR_S = 0.03  # a model beside its server: most of what one start was off by is its server's
LEAST_SCALE_S = 0.005  # below that, noise is a clock's
MOST_BYTES_PER_SECOND = 1e13
MOST_MODELS = 20_000  # those that were asked for last
KEPT_SERVERS, KEPT_MODELS = 200, 1_000  # the newest in JSON: less than a document may have

Fixed = Mapping[StartState, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFigures:
    """Of one server: bytes/s by tier, and seconds by state and tier. Errors are standard errors of a single start: of
    a bandwidth as a share of it, of the rest in seconds.
    """

    bandwidth: Mapping[str, float]
    bandwidth_error: Mapping[str, float]
    fixed_start_s: Fixed
    fixed_error_s: Fixed
    park_s: float
    park_error_s: float
    observations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """Of one model, beside its server's."""

    fixed_offset_s: Mapping[StartState, float]
    offset_error_s: Mapping[StartState, float]
    migration_s_per_token: float
    migration_fixed_s: float
    migration_error_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedStart:
    """What one start took. `read_s` is its read without the queue before it, None where nobody told; `rest_s` what was
    neither room, queue nor read.
    """

    server: ServerName
    model: str
    state: StartState
    tier: str
    bytes: int
    read_s: float | None
    rest_s: float


@dataclass(slots=True)
class Learned:
    """A fit, and what its observations were off by."""

    fit: Fit
    residuals: Residuals = field(default_factory=Residuals)

    def observe(self, inputs: tuple[float, ...], observed: float) -> None:
        learn([(self.fit, inputs)], observed, self.residuals, self.scale(inputs))

    def scale(self, inputs: tuple[float, ...]) -> float:
        return max(LEAST_SCALE_S, self.fit.at(inputs))

    def to_json(self) -> dict[str, Any]:
        return {"fit": self.fit.to_json(), "residuals": self.residuals.to_json()}

    def restore(self, body: Mapping[str, Any]) -> None:
        """What `to_json` wrote. Raises KeyError, TypeError, ValueError for anything else."""
        self.fit.restore(body["fit"])
        self.residuals.restore(body["residuals"])


@dataclass(slots=True)
class ServerCalibration:
    """One server's. Reads are lines over GB, everything else is levels in seconds."""

    reads: dict[str, Learned] = field(default_factory=lambda: {tier: _read_prior(tier) for tier in TIERS})
    fixed: dict[StartState, dict[str, Learned]] = field(
        default_factory=lambda: {
            state: {tier: _level_prior(seconds) for tier, seconds in ASSUMED_FIXED_S[state].items()} for state in STATES
        }
    )
    parking: Learned = field(default_factory=lambda: _level_prior(ASSUMED_PARK_S))

    def attach_s(self, tier: str) -> float:
        """What of a read is not its bytes'. It counts as fixed cost."""
        return self.reads[tier].fit.means[1]

    def figures(self) -> ServerFigures:
        slopes = {tier: max(GB / MOST_BYTES_PER_SECOND, read.fit.means[0]) for tier, read in self.reads.items()}
        return ServerFigures(
            bandwidth={tier: GB / slope for tier, slope in slopes.items()},
            bandwidth_error={
                tier: math.hypot(read.fit.error(0) / slopes[tier], read.residuals.share)
                for tier, read in self.reads.items()
            },
            fixed_start_s={
                state: {t: of.fit.means[0] for t, of in tiers.items()} for state, tiers in self.fixed.items()
            },
            fixed_error_s={state: {t: _error_s(of) for t, of in tiers.items()} for state, tiers in self.fixed.items()},
            park_s=self.parking.fit.means[0],
            park_error_s=_error_s(self.parking),
            observations=sum(of.fit.count for tiers in self.fixed.values() for of in tiers.values()),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "reads": {tier: read.to_json() for tier, read in self.reads.items()},
            "fixed": {state: {tier: of.to_json() for tier, of in tiers.items()} for state, tiers in self.fixed.items()},
            "parking": self.parking.to_json(),
        }

    def restore(self, body: Mapping[str, Any]) -> None:
        for tier, read in self.reads.items():
            read.restore(body["reads"][tier])
        for state, tiers in self.fixed.items():
            for tier, of in tiers.items():
                of.restore(body["fixed"][state][tier])
        self.parking.restore(body["parking"])


@dataclass(slots=True)
class ModelCalibration:
    """One model's: levels beside its servers', and a line over the tokens that a move recomputes."""

    offsets: dict[StartState, Fit] = field(default_factory=lambda: {state: _offset_prior() for state in STATES})
    migration: Learned = field(
        default_factory=lambda: Learned(
            Fit(
                means=[ASSUMED_MIGRATION_S_PER_TOKEN, ASSUMED_MIGRATION_FIXED_S],
                prior_errors=(ASSUMED_MIGRATION_S_PER_TOKEN * 4, ASSUMED_MIGRATION_FIXED_S),
                least=(0.0, 0.0),
            )
        )
    )

    def figures(self) -> ModelFigures:
        fit = self.migration.fit
        return ModelFigures(
            fixed_offset_s={state: offset.means[0] for state, offset in self.offsets.items()},
            offset_error_s={state: offset.error(0) for state, offset in self.offsets.items()},
            migration_s_per_token=fit.means[0],
            migration_fixed_s=fit.means[1],
            migration_error_s=math.hypot(fit.error(1), self.migration.residuals.share * fit.means[1]),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "offsets": {state: offset.to_json() for state, offset in self.offsets.items()},
            "migration": self.migration.to_json(),
        }

    def restore(self, body: Mapping[str, Any]) -> None:
        for state, offset in self.offsets.items():
            offset.restore(body["offsets"][state])
        self.migration.restore(body["migration"])


def _read_prior(tier: str) -> Learned:
    slope = GB / ASSUMED_BYTES_PER_SECOND[tier]
    return Learned(Fit(means=[slope, 0.0], prior_errors=(slope, ATTACH_ERROR_S), least=(0.0, 0.0)))


def _level_prior(seconds: float) -> Learned:
    return Learned(Fit(means=[seconds], prior_errors=(seconds,), least=(0.0,)))


def _offset_prior() -> Fit:
    return Fit(means=[0.0], prior_errors=(OFFSET_ERROR_S,), least=(-math.inf,))


def _error_s(of: Learned) -> float:
    return math.hypot(of.fit.error(0), of.residuals.share * of.scale((1.0,)))


class Calibration:
    """The control loop's; figures are made again only after an observation."""

    def __init__(self) -> None:
        self._servers: dict[ServerName, ServerCalibration] = {}
        self._models: dict[str, ModelCalibration] = {}
        self._server_figures: dict[ServerName, ServerFigures] = {}
        self._model_figures: dict[str, ModelFigures] = {}
        self._json: dict[str, Any] | None = None
        self._unknown_server = ServerCalibration().figures()
        self._unknown_model = ModelCalibration().figures()

    def server(self, name: ServerName) -> ServerFigures:
        if name not in self._servers:
            return self._unknown_server
        if name not in self._server_figures:
            self._server_figures[name] = self._servers[name].figures()
        return self._server_figures[name]

    def model(self, name: str) -> ModelFigures:
        if name not in self._models:
            return self._unknown_model
        if name not in self._model_figures:
            self._model_figures[name] = self._models[name].figures()
        return self._model_figures[name]

    def observe_start(self, start: ObservedStart) -> None:
        """A tier that nothing is learned about, as the page cache, says nothing."""
        if start.tier not in TIERS:
            return
        server, model = self._server_of(start.server), self._model_of(start.model)
        attach_s = 0.0
        if start.read_s is not None:
            server.reads[start.tier].observe((start.bytes / GB, 1.0), start.read_s)
            attach_s = min(start.read_s, server.attach_s(start.tier))
        level, offset = server.fixed[start.state][start.tier], model.offsets[start.state]
        parts = [(level.fit, (1.0,)), (offset, (1.0,))]
        scale_s = max(LEAST_SCALE_S, level.fit.means[0] + offset.means[0])
        learn(parts, start.rest_s + attach_s, level.residuals, scale_s)

    def observe_parking(self, server: ServerName, seconds: float) -> None:
        """From telling replicas to leave until their room was there."""
        self._server_of(server).parking.observe((1.0,), seconds)

    def observe_migration(self, model: str, *, tokens: int, seconds: float) -> None:
        """A stream with so many input and output tokens went on elsewhere after so long."""
        self._model_of(model).migration.observe((float(tokens), 1.0), seconds)

    def suppose_bandwidth(self, server: ServerName, tier: str, bytes_per_second: float) -> None:
        """What its store says it has measured; of use until a start says more."""
        known = self._servers.get(server)
        if bytes_per_second > 0 and (known is None or known.reads[tier].fit.count == 0):
            self._server_of(server).reads[tier].fit.means[0] = GB / bytes_per_second

    def attach_s(self, server: ServerName, tier: str) -> float:
        """What of a read there is not its bytes'."""
        known = self._servers.get(server)
        return 0.0 if known is None or tier not in known.reads else known.attach_s(tier)

    def _server_of(self, name: ServerName) -> ServerCalibration:
        self._server_figures.pop(name, None)
        self._json = None
        self._servers[name] = found = self._servers.pop(name, None) or ServerCalibration()
        return found

    def _model_of(self, name: str) -> ModelCalibration:
        self._model_figures.pop(name, None)
        self._json = None
        self._models[name] = found = self._models.pop(name, None) or ModelCalibration()
        while len(self._models) > MOST_MODELS:
            oldest = next(iter(self._models))
            del self._models[oldest]
            self._model_figures.pop(oldest, None)
        return found

    def to_json(self) -> dict[str, Any]:
        """What was learned last; not to be changed."""
        if self._json is None:
            servers, models = list(self._servers)[-KEPT_SERVERS:], list(self._models)[-KEPT_MODELS:]
            self._json = {
                "version": VERSION,
                "servers": {name: self._servers[name].to_json() for name in servers},
                "models": {name: self._models[name].to_json() for name in models},
            }
        return self._json

    def take_over(self, body: Any) -> None:
        """In place of what is known. Raises ValueError as `from_json` does, and then changes nothing."""
        found = self.from_json(body)
        self._servers, self._models, self._json = found._servers, found._models, None
        self._server_figures.clear()
        self._model_figures.clear()

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Calibration:
        """What `to_json` wrote. Raises ValueError for anything else, another version's included."""
        if not isinstance(body, Mapping) or body.get("version") != VERSION:
            raise ValueError(f"calibration: is not of version {VERSION}; delete it, and it is learned anew")
        found = cls()
        try:
            for name, of in body["servers"].items():
                found._server_of(ServerName(name)).restore(of)
            for name, of in body["models"].items():
                found._model_of(name).restore(of)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"calibration: cannot be read ({error}); delete it, and it is learned anew") from error
        return found
