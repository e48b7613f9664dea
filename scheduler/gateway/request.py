"""What a client asked for, parsed once: Triton's vllm_backend convention over KServe's request.

Owns the meaning of tensors and request parameters and the request that goes upstream; the shape of what goes back is
`composer.py`'s.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.backend.client_json import parse_json_object, parse_messages
from serverless_triton.backend.messages import TRACEPARENT
from serverless_triton.scheduler.admission import StreamId
from serverless_triton.scheduler.catalogue import PRIVATE_INPUTS, ModelEntry
from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.shared_memory import no_region
from serverless_triton.scheduler.gateway.tensors import (
    Tensor,
    add_input,
    check_outputs,
    number_tensor,
    read_inputs,
    string_tensor,
)
from serverless_triton.scheduler.journal import ResumePoint

PROMPTS = ("text_input", "input_ids", "messages")
_SEED_BITS = 53  # exact in JSON whoever reads it
EMPTY_FINAL = "triton_enable_empty_final_response"
RETURN_QUEUE_POSITION = "return_queue_position"
RETURN_RECEIPT = "return_receipt"
_PRIVATE_PARAMETERS = frozenset(
    {
        *PRIVATE_INPUTS,
        "attempt",
        "token_state",
        "deadline_unix_s",
        "reservation",
        "start_position",
        "freeze",
        TRACEPARENT,
    }
)
# Triton's own and the gateway's, which never reach a model: parameter → the kinds it takes.
_TRITON_PARAMETERS = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    "binary_data_output": ("bool_param",),
    EMPTY_FINAL: ("bool_param",),
    RETURN_QUEUE_POSITION: ("bool_param",),
    RETURN_RECEIPT: ("bool_param",),
}
_Parsed = TypeVar("_Parsed")
_RETURNS = {
    "return_finish_reason": "finish_reason",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A valid request for one model. Holds prompt text: never log it."""

    model: str
    version: str  # the version that answers
    asked_version: str = ""  # where the client named one
    client_id: str  # echoed, never a key
    inputs: Mapping[str, Tensor] = field(repr=False)
    sampling_parameters: Mapping[str, Any] = field(repr=False)
    whole: bool  # one response with everything, not one per message
    unary: bool = False  # the call carries one response, so that none is marked as the last
    prompt_text: bytes = field(repr=False)  # what to prepend to the first response; empty unless asked for
    outputs: frozenset[str]
    timeout_s: float | None  # of all of it, from its arrival to its last token
    priority: int = 0  # Triton's: 1 comes first, 0 is the default
    returns_queue_position: bool = False
    returns_receipt: bool = False

    def upstream(
        self, stream: StreamId, resume: ResumePoint, deadline_unix_s: int | None = None
    ) -> pb.ModelInferRequest:
        """The request a replica gets for this stream's attempt. The deadline is for whoever the replica hands it to.

        A resumed one gets the prompt's ids as soon as they are known: a chat template may write the date.
        """
        request = pb.ModelInferRequest(model_name=self.model, id=stream)
        replaced = {"stream": number_tensor("stream", "BOOL", [True])}
        if self.sampling_parameters:
            text = json.dumps(self.sampling_parameters, separators=(",", ":"))
            replaced["sampling_parameters"] = string_tensor("sampling_parameters", text.encode())
        if resume.token_ids:
            replaced["resume_token_ids"] = number_tensor("resume_token_ids", "INT32", resume.token_ids)
        inputs = dict(self.inputs)
        if resume.prompt_ids:
            inputs = {name: tensor for name, tensor in inputs.items() if name not in PROMPTS}
            replaced["input_ids"] = number_tensor("input_ids", "INT32", resume.prompt_ids)
        for tensor in {**inputs, **replaced}.values():
            add_input(request, tensor)
        request.parameters["token_state"].bool_param = True
        request.parameters["attempt"].int64_param = resume.attempt
        if deadline_unix_s is not None:
            request.parameters["deadline_unix_s"].int64_param = deadline_unix_s
        request.parameters[EMPTY_FINAL].bool_param = True
        return request


def parse_request(request: pb.ModelInferRequest, entry: ModelEntry, *, unary: bool = False) -> GenerationRequest:
    """`unary`: the call can carry one response only, so it gets the whole text. Raises InvalidRequest, UnknownModel."""
    version = entry.version(request.model_version)
    entry.served()
    _refuse_private(request)
    parameters = read_parameters(request.parameters)
    inputs = read_inputs(request, entry)
    _check_prompt(inputs, entry)
    stream = _flag(inputs, "stream", default=False)
    return GenerationRequest(
        model=entry.name,
        version=version,
        asked_version=version if request.model_version else "",
        client_id=request.id,
        inputs=inputs,
        sampling_parameters=_sampling(inputs, parameters),
        whole=unary or not stream,
        unary=unary,
        prompt_text=_prompt_text(inputs) if _prepends(inputs, stream) else b"",
        outputs=_outputs(request, entry, inputs),
        timeout_s=_timeout_s(parameters),
        priority=parameters.get("priority", 0),
        returns_queue_position=parameters.get(RETURN_QUEUE_POSITION, False),
        returns_receipt=parameters.get(RETURN_RECEIPT, False),
    )


def read_parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """Request parameters as Python values. Raises InvalidRequest for those that are reserved or of a wrong type."""
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        _check_parameter(name, kind)
        if kind is not None:
            values[name] = getattr(parameter, kind)
    return values


def _check_parameter(name: str, kind: str | None) -> None:
    if name in _PRIVATE_PARAMETERS:
        raise InvalidRequest(f"parameter '{name}' is reserved for the gateway and cannot be sent by a client")
    allowed = _TRITON_PARAMETERS.get(name)
    if allowed is None and name.startswith("triton_"):
        raise InvalidRequest(
            "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting "
            f"with 'triton_' are allowed: {EMPTY_FINAL}"
        )
    if allowed is not None and kind not in allowed:
        raise InvalidRequest(f"invalid value type for '{name}' parameter, expected {' or '.join(allowed)}.")


def _refuse_private(request: pb.ModelInferRequest) -> None:
    for tensor in request.inputs:
        if tensor.name in _PRIVATE_PARAMETERS:
            raise InvalidRequest(f"input '{tensor.name}' is reserved for the gateway and cannot be sent by a client")
    for tensor in (*request.inputs, *request.outputs):
        if any(name.startswith("shared_memory") for name in tensor.parameters):
            raise no_region(tensor.parameters["shared_memory_region"].string_param)


def _check_prompt(inputs: Mapping[str, Tensor], entry: ModelEntry) -> None:
    """What the backend would refuse too, but only after the model had been started for it."""
    given = [name for name in PROMPTS if name in inputs]
    if len(given) != 1:
        raise InvalidRequest(
            f"model '{entry.name}' got {' and '.join(given) or 'no prompt'}: "
            "give exactly one of the inputs 'text_input', 'input_ids' and 'messages'"
        )
    _text(inputs, "text_input")
    if "messages" in inputs:
        _parsed("messages", inputs, parse_messages)


def _flag(inputs: Mapping[str, Tensor], name: str, *, default: bool) -> bool:
    tensor = inputs.get(name)
    return default if tensor is None else tensor.flag()


def _prepends(inputs: Mapping[str, Tensor], stream: bool) -> bool:
    """vllm_backend: the prompt stands before the text unless excluded, and never where the text is streamed."""
    prepends = not _flag(inputs, "exclude_input_in_output", default=stream)
    if prepends and stream:
        raise InvalidRequest("When streaming, `exclude_input_in_output` = False is not allowed.")
    return prepends


def _prompt_text(inputs: Mapping[str, Tensor]) -> bytes:
    return _text(inputs, "text_input").encode()


def _sampling(inputs: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Request parameters, and over them what the `sampling_parameters` tensor says."""
    said: dict[str, Any] = {}
    if _text(inputs, "sampling_parameters"):
        said = _parsed("sampling_parameters", inputs, parse_json_object)
    merged = {**{name: value for name, value in parameters.items() if name not in _TRITON_PARAMETERS}, **said}
    if merged.get("temperature") and merged.get("seed") is None:
        merged["seed"] = secrets.randbits(
            _SEED_BITS
        )  # the stream's own, so that a resumed one goes on drawing the same
    return merged


def _text(inputs: Mapping[str, Tensor], name: str) -> str:
    tensor = inputs.get(name)
    try:
        return next(iter(tensor.strings()), b"").decode() if tensor is not None else ""
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input '{name}' is not UTF-8 at byte {error.start}") from error


def _parsed(name: str, inputs: Mapping[str, Tensor], parse: Callable[[str, str], _Parsed]) -> _Parsed:
    try:
        return parse(_text(inputs, name), f"input '{name}'")
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _outputs(request: pb.ModelInferRequest, entry: ModelEntry, inputs: Mapping[str, Tensor]) -> frozenset[str]:
    listed = check_outputs(request, entry)
    if listed:
        return listed
    return frozenset({"text_output"} | {out for name, out in _RETURNS.items() if _flag(inputs, name, default=False)})


def _timeout_s(parameters: Mapping[str, Any]) -> float | None:
    microseconds = parameters.get("timeout", 0)
    return microseconds / 1e6 if microseconds > 0 else None
