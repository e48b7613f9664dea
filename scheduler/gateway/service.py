"""What a gateway answers, whatever the protocol: KServe v2's calls over a repository, an admission and a relay.

Answers are KServe's own messages; `grpc_v2.py` and `http_v2.py` only carry them. Errors are SchedulerErrors, in
Triton's words.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.admission import Admission, Outlook
from serverless_triton.scheduler.catalogue import ModelEntry, Models, VisibleModels
from serverless_triton.scheduler.errors import InvalidModelName, InvalidRequest, LoadFailed, UnknownModel
from serverless_triton.scheduler.gateway.limits import Limiter
from serverless_triton.scheduler.gateway.passing import PassedStream, read_passed
from serverless_triton.scheduler.gateway.relay import Relay, RelayedStream
from serverless_triton.scheduler.gateway.request import GenerationRequest, parse_request
from serverless_triton.scheduler.gateway.sequences import Sequences
from serverless_triton.scheduler.gateway.statistics import Statistics
from serverless_triton.scheduler.gateway.terms import Terms
from serverless_triton.scheduler.identity import ANONYMOUS, Caller

log = logging.getLogger(__name__)

SERVER_NAME = "triton"
# The server whose surface this is; clients decide by it what they may ask.
SERVER_VERSION = "2.51.0"
EXTENSIONS = (
    "sequence",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "generate",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceService:
    """For one caller, who is everybody until `of` says otherwise. `admin_timeout_s` bounds load and unload."""

    catalogue: Models
    admission: Admission
    relay: Relay
    sequences: Sequences
    statistics: Statistics
    limiter: Limiter
    admin_timeout_s: float
    is_ready: Callable[[], bool] = lambda: True
    caller: Caller = ANONYMOUS

    def of(self, caller: Caller) -> InferenceService:
        """The same for a caller; models that it may not use are as if they were not there."""
        return replace(self, caller=caller, catalogue=VisibleModels(self.catalogue, caller.models))

    def count_request(self) -> None:
        """Raises RateLimited where the caller has had enough."""
        self.limiter.take(self.caller)

    def count_message(self) -> None:
        """Of a client's stream, whatever it asks. Raises RateLimited."""
        self.limiter.take_call(self.caller)

    def parse(self, request: pb.ModelInferRequest, *, unary: bool = False) -> GenerationRequest:
        """Raises InvalidModelName, UnknownModel, InvalidRequest."""
        return parse_request(request, self.catalogue.entry(request.model_name), unary=unary)

    def open(self, request: pb.ModelInferRequest, terms: Terms, *, unary: bool = False) -> RelayedStream | PassedStream:
        """A request of its own for the limits. Raises as `parse` does, and RateLimited."""
        entry = self.catalogue.entry(request.model_name)
        if entry.foreign is not None:
            passed = read_passed(request, entry, terms, unary=unary)
            self.count_request()
            return PassedStream(self.relay, self.sequences, passed, self.caller)
        wanted = terms.of(parse_request(request, entry, unary=unary))
        self.count_request()
        return self.relay.open(wanted, self.caller)

    async def outlook(self, name: str) -> Outlook:
        """What a request for the model would meet. Raises as `parse` does, and ModelTooLarge."""
        self.catalogue.entry(name)
        return await self.admission.outlook(name, caller=self.caller)

    def server_metadata(self) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=SERVER_VERSION, extensions=EXTENSIONS)

    def model_ready(self, name: str, version: str) -> bool:
        """Whether a request for it can be answered: a sleeping model wakes for it. Raises InvalidRequest."""
        try:
            entry = self.catalogue.entry(name)
            entry.version(version)
        except (InvalidModelName, UnknownModel):
            return False
        return True

    def check_traced(self, name: str) -> None:
        """Whether there are trace settings of this model; with an empty name, of the server. Raises InvalidRequest."""
        if name and not self.model_ready(name, ""):
            raise InvalidRequest(f"Request for unknown model : {name[:128]}")

    def model_metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        entry = self.catalogue.entry(name)
        entry.version(version)
        return entry.metadata()

    def model_config(self, name: str, version: str) -> pb.ModelConfigResponse:
        entry = self.catalogue.entry(name)
        entry.version(version)
        return pb.ModelConfigResponse(config=entry.config)

    def model_statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        """Of one model, or of all with an empty name."""
        asked = [self._counted(name, version)] if name else [(entry, "") for entry in self.catalogue.entries()]
        reports = [
            self.statistics.report(entry.name, found)
            for entry, only in asked
            for found in ([only] if only else entry.versions)
        ]
        return pb.ModelStatisticsResponse(model_stats=reports)

    def _counted(self, name: str, version: str) -> tuple[ModelEntry, str]:
        try:
            entry = self.catalogue.entry(name)
        except (InvalidModelName, UnknownModel) as error:
            raise InvalidRequest(f"requested model '{name[:128]}' is not available") from error
        try:
            return entry, entry.version(version) if version else ""
        except UnknownModel as error:
            raise InvalidRequest(f"requested model version is not available for model '{name}'") from error

    def repository_index(self, repository: str, *, ready_only: bool) -> pb.RepositoryIndexResponse:
        """Every model and version; READY are those that run somewhere. Of one whose newest state is not served, why."""
        _refuse_repository(repository)
        response, failed = pb.RepositoryIndexResponse(), self.admission.failed_definitions()
        for entry in self.catalogue.entries():
            trouble = entry.trouble or failed.get(entry.name, "")
            for version in entry.versions:
                if self.admission.runs(entry.name, version):
                    response.models.add(name=entry.name, version=version, state="READY", reason=trouble)
                elif not ready_only:
                    response.models.add(
                        name=entry.name, version=version, state="UNAVAILABLE", reason=trouble or "unloaded"
                    )
        for broken in () if ready_only else self.catalogue.broken():
            response.models.add(name=broken.name, state="UNAVAILABLE", reason=broken.reason)
        response.models.sort(key=lambda model: (model.name, model.version))
        return response

    async def load(self, name: str, repository: str, parameters: Mapping[str, object]) -> None:
        """Warms the model as it stands in the repository now, where it runs too: what has changed replaces what ran.

        Raises as Admission.warm does, and LoadFailed for a model that is not there.
        """
        _refuse_repository(repository)
        for parameter in parameters:  # "config" and "file:..." too: no client changes what runs
            raise InvalidRequest(f"unrecognized load parameter '{parameter[:128]}'.")
        try:
            self.catalogue.refresh(name)
            self.catalogue.entry(name)
        except (InvalidModelName, UnknownModel) as error:
            message = f"failed to load '{name[:128]}', failed to poll from model repository"
            raise LoadFailed(message, code="INTERNAL") from error
        self._log_act("load", name)
        await self.admission.warm(name, timeout_s=self.admin_timeout_s)

    async def unload(self, name: str, repository: str) -> None:
        """Lets the model sleep. A name that is not there sleeps already, as in Triton."""
        _refuse_repository(repository)
        try:
            self.catalogue.entry(name)
        except (InvalidModelName, UnknownModel):
            return
        self._log_act("unload", name)
        await self.admission.release(name, timeout_s=self.admin_timeout_s)

    def _log_act(self, act: str, model: str) -> None:
        """Of a model that is there; a key is named and never shown."""
        log.info("model_%s model=%s tenant=%s key=%s", act, model, self.caller.tenant, self.caller.key)


class Unsupported(InvalidRequest):
    """Something of Triton's that this gateway does not do."""

    code = "UNIMPLEMENTED"


def _refuse_repository(repository: str) -> None:
    if repository:
        raise Unsupported("'repository_name' specification is not supported")
