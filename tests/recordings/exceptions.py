"""Where the gateway must answer otherwise than the recorded server, and why: one entry a call, with its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.recordings.calls import FILE, Answer

RECORDED: dict[str, Answer] = json.loads(FILE.read_text())


@dataclass(frozen=True, slots=True, kw_only=True)
class Differs:
    """What the gateway answers instead, in the recordings' form."""

    why: str
    answer: Answer


def http_error(status: int, words: str) -> Answer:
    return {"status": status, "body": {"error": words}}


def grpc_error(code: str, words: str) -> Answer:
    return {"code": code, "details": words, "messages": []}


def like(recorded: str, of: str, to: str) -> Answer:
    """Another call's recorded answer, said of another model."""
    text = json.dumps(RECORDED[recorded])
    found: Answer = json.loads(text.replace(f'"{of}"', f'"{to}"').replace(f'"{of}_0"', f'"{to}_0"'))
    return found


COLD = "A model that does not run is described, ready and answered: it wakes for a request."
DECOUPLED = "A decoupled model's whole text fits one response, so a unary request for it gets that."
CLIENTS_FAULT = (
    "Triton calls its own fault what it cannot read of a request, and answers 500. A client should not send that "
    "again, and nobody should be woken for it: 400."
)
NO_OVERRIDE = "A client does not change what runs: neither a configuration nor a file is taken with a load."
LISTED = "What this gateway does not do is not announced: shared memory, tracing, classes of our models' outputs."
_SERVERS_FAULT = ("system_memory_register", "load_unknown", "load_broken")
_EXTENSIONS = [
    "sequence", "model_repository", "schedule_policy", "model_configuration", "binary_tensor_data", "parameters",
    "statistics", "generate",
]  # fmt: skip
_NO_PROMPT = "model 'plain' got no prompt: give exactly one of the inputs 'text_input', 'input_ids' and 'messages'"
_NOT_A_MODEL = "This is the model's to say, and ours have no answer without a prompt."
_HUGE = "Triton multiplies dimensions into 64 bits; 2^62 INT32 become 0 bytes there."


def _descriptions() -> dict[str, Answer]:
    found = {"model_never_loaded": like("model", "m", "stranger"), "model_ready_never_loaded": RECORDED["model_ready"]}
    found["grpc_model_never_loaded"] = like("grpc_model", "m", "stranger")
    found["grpc_model_ready_never_loaded"] = RECORDED["grpc_model_ready"]
    found["grpc_config_never_loaded"] = like("grpc_config", "m", "stranger")
    return found


def _answers() -> dict[str, Answer]:
    return {
        "generate_never_loaded": like("generate", "m", "sleeper"),
        "infer_never_loaded": like("infer_json", "plain", "sleeper"),
        "grpc_infer_never_loaded": like("grpc_infer_raw", "plain", "sleeper"),
    }


def _statistics() -> dict[str, Answer]:
    """`sleeper` was asked once, `stranger` and `onnx` never."""
    found: dict[str, Answer] = {}
    for prefix in ("", "grpc_"):
        of = {name: _of(like(f"{prefix}statistics", "m", name)) for name in ("m", "plain", "sleeper")}
        of |= {
            name: {**_of(like(f"{prefix}statistics", "m", name)), "batch_stats": []} for name in ("onnx", "stranger")
        }
        for call, names in (("statistics_never_loaded", ("stranger",)), (_ALL[prefix], sorted(of))):
            found[prefix + call] = _with(RECORDED[f"{prefix}statistics"], [of[name] for name in names])
    return found


_ALL = {"": "statistics_of_all", "grpc_": "statistics_without_a_name"}


def _of(answer: Answer) -> Any:
    body = answer["body"] if "body" in answer else answer["messages"][0]
    return body["model_stats"][0]


def _with(answer: Answer, models: list[Any]) -> Answer:
    stats = {"model_stats": models}
    return {**answer, "body": stats} if "body" in answer else {**answer, "messages": [stats]}


def _index() -> dict[str, Answer]:
    ready = [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in ("m", "plain")]
    asleep = ("onnx", "sleeper", "stranger")
    cold = [{"name": name, "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"} for name in asleep]
    broken = {"name": "broken", "version": "", "state": "UNAVAILABLE", "reason": "config.pbtxt: <why>"}
    models = sorted([*ready, *cold, broken], key=lambda model: model["name"])
    written = [{key: text for key, text in model.items() if text} for model in models]
    found = {
        name: {**RECORDED[name], "body": written} for name in ("index", "index_empty_object", "index_of_a_repository")
    }
    return {**found, "grpc_index": {"code": "OK", "messages": [{"models": models}]}}


def _single() -> dict[str, Differs]:
    """Those that have a reason of their own."""
    found: dict[str, tuple[str, Answer]] = {
        "server": (LISTED, {**RECORDED["server"], "body": {**RECORDED["server"]["body"], "extensions": _EXTENSIONS}}),
        "grpc_server": (
            LISTED,
            {"code": "OK", "messages": [{**RECORDED["grpc_server"]["messages"][0], "extensions": _EXTENSIONS}]},
        ),
        "generate_compressed": (
            "A compressed generate request is read as a compressed infer request is; Triton refuses it.",
            RECORDED["generate"],
        ),
        "infer_gzip_request_that_is_none": (
            "Triton takes what it cannot decompress for an empty body, and speaks of that.",
            http_error(400, "the request's body cannot be decoded as its Content-Encoding says"),
        ),
        "infer_not_a_number": (
            "NaN is no JSON, and no other reader of it would take it.",
            http_error(400, "failed to parse the request JSON buffer: NaN is no JSON"),
        ),
        "infer_empty_inputs": (_NOT_A_MODEL, http_error(400, _NO_PROMPT)),
        "grpc_infer_nothing": (_NOT_A_MODEL, grpc_error("INVALID_ARGUMENT", _NO_PROMPT)),
        "infer_input_shape_huge": (
            _HUGE,
            http_error(400, RECORDED["infer_input_shape_huge"]["body"]["error"].replace(" 0,", f" {2**64},")),
        ),
        "grpc_infer_shape_huge": (
            _HUGE,
            grpc_error("INVALID_ARGUMENT", RECORDED["grpc_infer_shape_huge"]["details"].replace(" 0,", f" {2**64},")),
        ),
        "infer_data_too_large": (
            "Triton cuts a number to its datatype, and the model gets another one than the client sent.",
            http_error(400, "Unable to parse 'data' of input 'input_ids': a value does not fit INT32"),
        ),
        "infer_classification": (
            "No model that generates text has classes.",
            http_error(400, "output 'output_ids': classification is not supported"),
        ),
        "unload_bad_json": (
            "A body that cannot be read may have asked for something else; Triton does not look at it.",
            http_error(400, "failed to parse the request JSON buffer: Missing a name for object member. at 1"),
        ),
        "grpc_no_such_call": (
            "The words are the gRPC library's; the code is what clients look at.",
            grpc_error("UNIMPLEMENTED", "Method not found!"),
        ),
        "grpc_stream_no_message": (
            "Triton takes it for the stream's end, and a request that the client believes to have sent is lost.",
            grpc_error("INTERNAL", "Unable to parse request"),
        ),
        "grpc_stream_ends_on_error": (
            "The client asked for errors as gRPC's; Triton does so only for those that a model makes.",
            grpc_error("INVALID_ARGUMENT", "unexpected inference input 'nothing' for model 'plain'"),
        ),
        "load_config_no_json": (NO_OVERRIDE, http_error(400, "unrecognized load parameter 'config'.")),
        "load_file_without_config": (NO_OVERRIDE, http_error(400, "unrecognized load parameter 'file:1/x'.")),
        "grpc_load_config_no_json": (
            NO_OVERRIDE,
            grpc_error("INVALID_ARGUMENT", "unrecognized load parameter 'config'."),
        ),
    }
    return {name: Differs(why=why, answer=answer) for name, (why, answer) in found.items()}


def _group(why: str, answers: dict[str, Answer]) -> dict[str, Differs]:
    return {name: Differs(why=why, answer=answer) for name, answer in answers.items()}


_UNARY = {
    "infer_decoupled": like("infer_json", "plain", "m"),
    "grpc_infer_decoupled": like("grpc_infer_raw", "plain", "m"),
}
_UNREADABLE = {
    name: {**answer, "status": 400}
    for name, answer in RECORDED.items()
    if answer.get("status") == 500 and name not in _SERVERS_FAULT
}
EXCEPTIONS: dict[str, Differs] = {
    **_group(CLIENTS_FAULT, _UNREADABLE),
    **_group(COLD, {**_descriptions(), **_answers(), **_statistics(), **_index()}),
    **_group(DECOUPLED, _UNARY),
    **_single(),
}
