"""The gRPC half of the table."""

from __future__ import annotations

import struct
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from tests.recordings.calls import GrpcCall

SERVICE = "/inference.GRPCInferenceService/"
EMPTY_FINAL = "triton_enable_empty_final_response"
ENDS_ON_ERROR = (("triton_grpc_error", "true"),)
_ANSWERS = {name: getattr(pb, f"{name}Response") for name in (
    "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics",
    "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings",
    "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "ModelInfer", "ModelStreamInfer",
)}  # fmt: skip


def call(name: str, method: str, *messages: Message | bytes, **more: Any) -> GrpcCall:
    streams = method == "ModelStreamInfer"
    return GrpcCall(
        name=f"grpc_{name}",
        method=SERVICE + method,
        messages=messages,
        answer=_ANSWERS[method],
        streams=streams,
        **more,
    )


def unary(name: str, method: str, /, **fields: Any) -> GrpcCall:
    return call(name, method, getattr(pb, f"{method}Request")(**fields))


_OF_MODELS = tuple(
    unary(f"{name}{suffix}", method, name=model, version=version)
    for name, method in (
        ("model_ready", "ModelReady"),
        ("model", "ModelMetadata"),
        ("config", "ModelConfig"),
        ("statistics", "ModelStatistics"),
    )
    for suffix, model, version in (
        ("", "m", ""),
        ("_version", "m", "1"),
        ("_version_unknown", "m", "7"),
        ("_version_no_number", "m", "x"),
        ("_version_zero", "m", "0"),
        ("_unknown", "nope", ""),
        ("_without_a_name", "", ""),
        ("_never_loaded", "stranger", ""),
    )
)


def trace(name: str, model: str = "", /, **settings: list[str]) -> GrpcCall:
    request = pb.TraceSettingRequest(model_name=model)
    for key, values in settings.items():
        request.settings[key].value.extend(values)
    return call(f"trace{name}", "TraceSetting", request)


def log(name: str, /, **settings: dict[str, Any]) -> GrpcCall:
    request = pb.LogSettingsRequest()
    for key, value in settings.items():
        request.settings[key].CopyFrom(pb.LogSettingsRequest.SettingValue(**value))
    return call(f"log{name}", "LogSettings", request)


_SETTINGS = (
    trace(""),
    trace("_of_a_model", "m"),
    trace("_of_an_unknown_model", "nope"),
    trace("_off", trace_level=["OFF"]),
    trace("_unknown_setting", nothing=["1"]),
    trace("_bad_rate", trace_rate=["often"]),
    trace("_two_rates", trace_rate=["1", "2"]),
    trace("_bad_count", trace_count=["-2"]),
    trace("_bad_level", trace_level=["WAT"]),
    trace("_file", trace_file=["trace.json"]),
    log(""),
    log("_as_it_is", log_info={"bool_param": True}, log_verbose_level={"uint32_param": 0}),
    log("_unknown_setting", nothing={"bool_param": True}),
    log("_file", log_file={"string_param": "triton.log"}),
    log("_info_no_bool", log_info={"uint32_param": 5}),
    log("_level_no_number", log_verbose_level={"string_param": "high"}),
    log("_bad_format", log_format={"string_param": "WAT"}),
)

_MEMORY = (
    unary("system_memory_status", "SystemSharedMemoryStatus"),
    unary("system_memory_status_of_a_region", "SystemSharedMemoryStatus", name="r"),
    unary("system_memory_register", "SystemSharedMemoryRegister", name="r", key="/no_such_memory", byte_size=64),
    unary("system_memory_register_nothing", "SystemSharedMemoryRegister"),
    unary("system_memory_unregister", "SystemSharedMemoryUnregister", name="r"),
    unary("system_memory_unregister_all", "SystemSharedMemoryUnregister"),
    unary("cuda_memory_status", "CudaSharedMemoryStatus"),
    unary("cuda_memory_status_of_a_region", "CudaSharedMemoryStatus", name="r"),
    unary("cuda_memory_register", "CudaSharedMemoryRegister", name="r", raw_handle=b"\x00" * 64, byte_size=64),
    unary("cuda_memory_unregister", "CudaSharedMemoryUnregister", name="r"),
    unary("cuda_memory_unregister_all", "CudaSharedMemoryUnregister"),
)

_HEALTH = tuple(
    GrpcCall(name=f"grpc_health_{name}", method="/grpc.health.v1.Health/Check", messages=(message,), answer=None)
    for name, message in (
        ("", b""),
        ("of_the_service", b"\x0a\x1einference.GRPCInferenceService"),
        ("of_an_unknown_service", b"\x0a\x04nope"),
    )
)

BINARY_HI = struct.pack("<I", 2) + b"hi"
SAMPLING = b'{"max_tokens": 4, "ignore_eos": true}'


def request(model: str = "plain", *, stream: bool = False, **fields: Any) -> pb.ModelInferRequest:
    """Four tokens after "hi"."""
    found = pb.ModelInferRequest(model_name=model, **fields)
    _add(found, "text_input", "BYTES", BINARY_HI)
    _add(found, "sampling_parameters", "BYTES", struct.pack("<I", len(SAMPLING)) + SAMPLING)
    if stream:
        _add(found, "stream", "BOOL", b"\x01")
    return found


def _add(to: pb.ModelInferRequest, name: str, datatype: str, raw: bytes, shape: tuple[int, ...] = (1,)) -> None:
    to.inputs.add(name=name, datatype=datatype, shape=shape)
    to.raw_input_contents.append(raw)


def tensor(
    name: str, datatype: str, raw: bytes | None, shape: tuple[int, ...] = (1,), **contents: Any
) -> pb.ModelInferRequest:
    """A request with this one input."""
    found = pb.ModelInferRequest(model_name="plain", id="t1")
    found.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is not None:
        found.raw_input_contents.append(raw)
    if contents:
        found.inputs[0].contents.CopyFrom(pb.InferTensorContents(**contents))
    return found


def with_parameter(name: str, kind: str, value: Any, model: str = "plain", **more: Any) -> pb.ModelInferRequest:
    found = request(model, **more)
    setattr(found.parameters[name], kind, value)
    return found


def with_outputs(*names: str) -> pb.ModelInferRequest:
    found = request()
    for name in names:
        found.outputs.add(name=name)
    return found


def twice() -> pb.ModelInferRequest:
    found = request(id="t1")
    _add(found, "text_input", "BYTES", BINARY_HI)
    return found


def in_shared_memory() -> pb.ModelInferRequest:
    found = pb.ModelInferRequest(model_name="plain", id="t1")
    found.inputs.add(name="text_input", datatype="BYTES", shape=(1,))
    found.inputs[0].parameters["shared_memory_region"].string_param = "r"
    found.inputs[0].parameters["shared_memory_byte_size"].int64_param = 6
    return found


def into_shared_memory() -> pb.ModelInferRequest:
    found = with_outputs("text_output")
    found.outputs[0].parameters["shared_memory_region"].string_param = "r"
    found.outputs[0].parameters["shared_memory_byte_size"].int64_param = 64
    return found


IDS = struct.pack("<3i", 1, 2, 3)
_INFER = tuple(
    call(f"infer_{name}", "ModelInfer", message)
    for name, message in (
        ("decoupled", request("m")),
        ("raw", request()),
        ("with_an_id", request(id="i1")),
        ("version", request(model_version="1")),
        ("typed", tensor("text_input", "BYTES", None, bytes_contents=[b"hi"])),
        ("typed_numbers", tensor("input_ids", "INT32", None, (3,), int_contents=[1, 2, 3])),
        ("outputs", with_outputs("output_ids", "text_output")),
        ("output_unknown", with_outputs("nothing")),
        ("output_in_shared_memory", into_shared_memory()),
        ("input_in_shared_memory", in_shared_memory()),
        ("unknown_model", request("nope")),
        ("never_loaded", request("sleeper")),
        ("without_a_model", request("")),
        ("unknown_version", request(model_version="7")),
        ("version_no_number", request(model_version="x")),
        ("nothing", pb.ModelInferRequest(model_name="plain")),
        ("input_unknown", tensor("nothing", "BYTES", BINARY_HI)),
        ("input_twice", twice()),
        ("datatype_wrong", tensor("input_ids", "INT64", IDS + IDS, (3,))),
        ("datatype_unknown", tensor("input_ids", "WAT", IDS, (3,))),
        ("shape_negative", tensor("input_ids", "INT32", IDS, (-1,))),
        ("shape_huge", tensor("input_ids", "INT32", IDS, (2**62,))),
        ("shape_wrong", tensor("text_input", "BYTES", BINARY_HI + BINARY_HI, (2,))),
        ("rank_wrong", tensor("text_input", "BYTES", BINARY_HI, (1, 1))),
        ("bytes_missing", tensor("input_ids", "INT32", IDS[:8], (3,))),
        ("bytes_left_over", tensor("input_ids", "INT32", IDS + IDS, (3,))),
        ("text_cut_off", tensor("text_input", "BYTES", BINARY_HI[:5])),
        ("text_length_cut_off", tensor("text_input", "BYTES", BINARY_HI[:3])),
        ("two_texts_for_one", tensor("text_input", "BYTES", BINARY_HI + BINARY_HI)),
        ("no_data", tensor("text_input", "BYTES", None)),
        ("both_kinds_of_data", tensor("text_input", "BYTES", BINARY_HI, bytes_contents=[b"hi"])),
        ("typed_as_another", tensor("input_ids", "INT32", None, (3,), bytes_contents=[b"a"])),
        ("sequence_id_a_bool", with_parameter("sequence_id", "bool_param", True)),
        ("sequence_start_a_number", with_parameter("sequence_start", "int64_param", 1)),
        ("priority_a_text", with_parameter("priority", "string_param", "high")),
        ("timeout_a_text", with_parameter("timeout", "string_param", "soon")),
        ("parameter_of_tritons", with_parameter("triton_x", "int64_param", 1)),
        ("parameter", with_parameter("x", "int64_param", 1)),
        ("empty_final_a_number", with_parameter(EMPTY_FINAL, "int64_param", 1)),
        ("no_message", b"\xff\xff\xff"),
    )
)

_STREAMS = tuple(
    call(f"stream_{name}", "ModelStreamInfer", *messages)
    for name, messages in (
        ("nothing", ()),
        ("text", (request("m", stream=True, id="s1"),)),
        ("text_without_an_id", (request("m", stream=True),)),
        ("text_and_an_empty_final", (with_parameter(EMPTY_FINAL, "bool_param", True, "m", stream=True, id="s2"),)),
        ("text_and_no_empty_final", (with_parameter(EMPTY_FINAL, "bool_param", False, "m", stream=True),)),
        ("whole", (request("m", id="s3"),)),
        ("whole_and_an_empty_final", (with_parameter(EMPTY_FINAL, "bool_param", True, "m"),)),
        ("not_decoupled", (request("plain", id="s4"),)),
        ("input_unknown", (tensor("nothing", "BYTES", BINARY_HI),)),
        ("datatype_wrong", (tensor("input_ids", "INT64", IDS + IDS, (3,)),)),
        ("two_requests", (request("m", id="a"), request("m", id="b"))),
        ("no_message", (b"\xff\xff\xff",)),
    )
)

# Last: such a stream is what a server of this version may crash by.
_AT_RISK = (
    call("stream_ends_on_error", "ModelStreamInfer", tensor("nothing", "BYTES", BINARY_HI), metadata=ENDS_ON_ERROR),
    call("stream_unknown_version", "ModelStreamInfer", request("m", model_version="7", id="s6")),
    call("stream_unknown_model", "ModelStreamInfer", request("nope", id="s5")),
)


def load(name: str, model: str, repository: str = "", /, **parameters: dict[str, Any]) -> GrpcCall:
    message = pb.RepositoryModelLoadRequest(model_name=model, repository_name=repository)
    for key, value in parameters.items():
        message.parameters[key].CopyFrom(pb.ModelRepositoryParameter(**value))
    return call(f"load{name}", "RepositoryModelLoad", message)


_REPOSITORY = (
    unary("index", "RepositoryIndex"),
    unary("index_ready", "RepositoryIndex", ready=True),
    unary("index_of_a_repository", "RepositoryIndex", repository_name="r"),
    load("_again", "plain"),
    load("_unknown", "nope"),
    load("_of_a_repository", "plain", "r"),
    load("_unknown_parameter", "plain", nothing={"string_param": "x"}),
    load("_parameter_a_bool", "plain", config={"bool_param": True}),
    load("_config_no_json", "plain", config={"string_param": "{bad"}),
    unary("unload_unknown", "RepositoryModelUnload", model_name="nope"),
    unary("unload_of_a_repository", "RepositoryModelUnload", model_name="nope", repository_name="r"),
)

_SERVER = (
    unary("live", "ServerLive"),
    unary("ready", "ServerReady"),
    unary("server", "ServerMetadata"),
    call("live_no_message", "ServerLive", b"\xff\xff\xff"),
    GrpcCall(name="grpc_no_such_call", method=f"{SERVICE}Nothing", messages=(b"",), answer=pb.ServerLiveResponse),
)

GRPC_CALLS = (*_SERVER, *_HEALTH, *_OF_MODELS, *_SETTINGS, *_MEMORY, *_INFER, *_STREAMS, *_REPOSITORY, *_AT_RISK)
