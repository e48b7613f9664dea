"""The HTTP half of the table."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from tests.recordings.calls import HttpCall

LENGTH = "Inference-Header-Content-Length"
TEXT = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["hi"]}
IDS = {"name": "input_ids", "shape": [3], "datatype": "INT32", "data": [1, 2, 3]}
BINARY_TEXT = {"name": "text_input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}
BINARY_HI = struct.pack("<I", 2) + b"hi"
INFER = "/v2/models/plain/infer"
GENERATE = "/v2/models/m/generate"
SHORT = {"text_input": "hi", "max_tokens": 4, "ignore_eos": True}


def get(name: str, path: str, **headers: str) -> HttpCall:
    return HttpCall(name=name, method="GET", path=path, headers=headers)


def post(name: str, path: str, body: Any = b"", headers: Mapping[str, str] | None = None) -> HttpCall:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpCall(name=name, method="POST", path=path, body=data, headers=headers or {})


def infer(name: str, body: Any, binary: bytes = b"", length: str | None = None, **headers: str) -> HttpCall:
    """With binary data, and so the header that says where it begins, if there is any or `length` says so."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    if binary or length is not None:
        headers[LENGTH] = str(len(data)) if length is None else length
    return post(f"infer_{name}", INFER, data + binary, headers)


def changed(tensor: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    """The tensor with these members; without those that are None."""
    return {key: value for key, value in {**tensor, **members}.items() if value is not None}


def inputs(*tensors: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(tensors), **more}


_DESCRIPTIONS = (
    get("live", "/v2/health/live"),
    get("ready", "/v2/health/ready"),
    get("server", "/v2"),
    get("server_with_a_slash", "/v2/"),
    get("model", "/v2/models/m"),
    get("model_version", "/v2/models/m/versions/1"),
    get("model_version_unknown", "/v2/models/m/versions/7"),
    get("model_version_zero", "/v2/models/m/versions/0"),
    get("model_version_no_number", "/v2/models/m/versions/x"),
    get("model_unknown", "/v2/models/nope"),
    get("model_never_loaded", "/v2/models/stranger"),
    get("model_ready", "/v2/models/m/ready"),
    get("model_ready_version", "/v2/models/m/versions/1/ready"),
    get("model_ready_version_unknown", "/v2/models/m/versions/7/ready"),
    get("model_ready_unknown", "/v2/models/nope/ready"),
    get("model_ready_never_loaded", "/v2/models/stranger/ready"),
    get("config", "/v2/models/m/config"),
    get("config_version", "/v2/models/m/versions/1/config"),
    get("config_version_unknown", "/v2/models/m/versions/7/config"),
    get("config_unknown", "/v2/models/nope/config"),
    get("no_such_path", "/v2/nothing"),
    get("no_such_root", "/v3"),
    get("no_such_part_of_a_model", "/v2/models/m/nothing"),
    HttpCall(name="server_deleted", method="DELETE", path="/v2"),
    post("server_posted", "/v2", b"{}"),
    post("model_posted", "/v2/models/m", b"{}"),
    post("config_posted", "/v2/models/m/config", b"{}"),
    post("ready_posted", "/v2/health/ready", b"{}"),
    get("infer_gotten", INFER),
    get("generate_gotten", GENERATE),
    get("index_gotten", "/v2/repository/index"),
    get("load_gotten", "/v2/repository/models/plain/load"),
)

_SETTINGS = (
    get("trace", "/v2/trace/setting"),
    get("trace_of_a_model", "/v2/models/m/trace/setting"),
    get("trace_of_an_unknown_model", "/v2/models/nope/trace/setting"),
    post("trace_nothing_set", "/v2/trace/setting", {}),
    post("trace_no_body", "/v2/trace/setting"),
    post("trace_off", "/v2/trace/setting", {"trace_level": ["OFF"]}),
    post("trace_off_of_a_model", "/v2/models/m/trace/setting", {"trace_level": ["OFF"]}),
    post("trace_off_of_an_unknown_model", "/v2/models/nope/trace/setting", {"trace_level": ["OFF"]}),
    post("trace_bad_json", "/v2/trace/setting", b"{bad"),
    post("trace_unknown_setting", "/v2/trace/setting", {"nothing": "1"}),
    post("trace_bad_rate", "/v2/trace/setting", {"trace_rate": "often"}),
    post("trace_bad_count", "/v2/trace/setting", {"trace_count": "-2"}),
    post("trace_bad_level", "/v2/trace/setting", {"trace_level": ["WAT"]}),
    post("trace_level_no_list", "/v2/trace/setting", {"trace_level": 5}),
    post("trace_file", "/v2/trace/setting", {"trace_file": "trace.json"}),
    post("trace_mode", "/v2/trace/setting", {"trace_mode": "triton"}),
    get("log", "/v2/logging"),
    post("log_nothing_set", "/v2/logging", {}),
    post("log_no_body", "/v2/logging"),
    post("log_as_it_is", "/v2/logging", {"log_info": True, "log_verbose_level": 0, "log_format": "default"}),
    post("log_bad_json", "/v2/logging", b"{bad"),
    post("log_unknown_setting", "/v2/logging", {"nothing": 1}),
    post("log_file", "/v2/logging", {"log_file": "triton.log"}),
    post("log_info_no_bool", "/v2/logging", {"log_info": 5}),
    post("log_level_no_number", "/v2/logging", {"log_verbose_level": "high"}),
    post("log_level_negative", "/v2/logging", {"log_verbose_level": -1}),
    post("log_bad_format", "/v2/logging", {"log_format": "WAT"}),
)


def _shared_memory(kind: str, register: dict[str, Any]) -> tuple[HttpCall, ...]:
    path, name = f"/v2/{kind}sharedmemory", f"{kind}_memory"
    return (
        get(f"{name}_status", f"{path}/status"),
        get(f"{name}_status_of_a_region", f"{path}/region/r/status"),
        post(f"{name}_register", f"{path}/region/r/register", register),
        post(f"{name}_register_no_body", f"{path}/region/r/register"),
        post(f"{name}_register_nothing", f"{path}/region/r/register", {}),
        post(f"{name}_register_bad_json", f"{path}/region/r/register", b"{bad"),
        post(f"{name}_register_no_region", f"{path}/register", register),
        post(f"{name}_unregister", f"{path}/region/r/unregister"),
        post(f"{name}_unregister_all", f"{path}/unregister"),
        post(f"{name}_posted_status", f"{path}/status"),
        get(f"{name}_gotten_register", f"{path}/region/r/register"),
        get(f"{name}_no_such_path", f"{path}/nothing"),
    )


_MEMORY = (
    *_shared_memory("system", {"key": "/no_such_memory", "offset": 0, "byte_size": 64}),
    *_shared_memory("cuda", {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 64}),
)

_GENERATE = (
    post("generate", GENERATE, SHORT),
    post("generate_version", "/v2/models/m/versions/1/generate", SHORT),
    post("generate_with_an_id", "/v2/models/plain/generate", {"text_input": "hi", "id": "g1"}),
    post("generate_parameters", GENERATE, {"text_input": "hi", "parameters": {"max_tokens": 4, "ignore_eos": True}}),
    post("generate_more_outputs", GENERATE, {**SHORT, "return_finish_reason": True, "return_num_output_tokens": True}),
    post("generate_compressed_answer", GENERATE, SHORT, {"Accept-Encoding": "gzip"}),
    post("generate_compressed", GENERATE, gzip.compress(json.dumps(SHORT).encode()), {"Content-Encoding": "gzip"}),
    post("generate_no_body", GENERATE),
    post("generate_bad_json", GENERATE, b"{bad"),
    post("generate_a_list", GENERATE, []),
    post("generate_a_wrong_type", GENERATE, {"text_input": 5}),
    post("generate_two_texts", GENERATE, {"text_input": ["a", "b"]}),
    post("generate_an_object", GENERATE, {"text_input": {"a": 1}}),
    post("generate_a_list_as_parameter", GENERATE, {"text_input": "hi", "x": [1]}),
    post("generate_an_object_as_parameter", GENERATE, {"text_input": "hi", "x": {"a": 1}}),
    post("generate_parameters_no_object", GENERATE, {"text_input": "hi", "parameters": 5}),
    post("generate_a_nested_list", GENERATE, {"text_input": "hi", "parameters": {"x": [1]}}),
    post("generate_an_id_that_is_none", GENERATE, {"text_input": "hi", "id": 5}),
    post("generate_a_bool_that_is_none", GENERATE, {"text_input": "hi", "stream": "yes"}),
    post("generate_a_number_that_is_none", GENERATE, {"input_ids": ["a"]}),
    post("generate_unknown_model", "/v2/models/nope/generate", SHORT),
    post("generate_never_loaded", "/v2/models/sleeper/generate", SHORT),
    post("generate_unknown_version", "/v2/models/m/versions/7/generate", SHORT),
    post("generate_stream", f"{GENERATE}_stream", {**SHORT, "stream": True}),
    post("generate_stream_with_an_id", "/v2/models/plain/generate_stream", {"text_input": "hi", "id": "g2"}),
    post("generate_stream_whole", f"{GENERATE}_stream", SHORT),
    post("generate_stream_bad_json", f"{GENERATE}_stream", b"{bad"),
    post("generate_stream_a_wrong_type", f"{GENERATE}_stream", {"text_input": 5}),
    post("generate_stream_unknown_model", "/v2/models/nope/generate_stream", SHORT),
)

_GZIP = {"Content-Encoding": "gzip"}
_PLAIN = json.dumps(inputs(TEXT)).encode()
_INFER = (
    post("infer_decoupled", "/v2/models/m/infer", inputs(TEXT)),
    post("infer_unknown_model", "/v2/models/nope/infer", inputs(TEXT)),
    post("infer_never_loaded", "/v2/models/sleeper/infer", inputs(TEXT)),
    post("infer_unknown_version", "/v2/models/plain/versions/7/infer", inputs(TEXT)),
    post("infer_version", "/v2/models/plain/versions/1/infer", inputs(TEXT)),
    infer("json", inputs(TEXT)),
    infer("json_with_an_id", inputs(TEXT, id="i1")),
    infer("json_typed", inputs(IDS)),
    infer("outputs", inputs(TEXT, outputs=[{"name": "output_ids"}, {"name": "text_output"}])),
    infer("output_twice", inputs(TEXT, outputs=[{"name": "text_output"}, {"name": "text_output"}])),
    infer("binary_input", inputs(BINARY_TEXT), BINARY_HI),
    infer("binary_outputs", inputs(TEXT, outputs=[{"name": "text_output", "parameters": {"binary_data": True}}])),
    infer("binary_by_default", inputs(TEXT, parameters={"binary_data_output": True})),
    infer(
        "binary_and_json",
        inputs(
            BINARY_TEXT,
            outputs=[{"name": "output_ids", "parameters": {"binary_data": True}}, {"name": "text_output"}],
        ),
        BINARY_HI,
    ),
    infer("parameters", inputs(TEXT, parameters={"x": 1, "y": "text", "z": True})),
    infer("gzip_request", gzip.compress(_PLAIN), **_GZIP),
    infer("deflate_request", zlib.compress(_PLAIN), **{"Content-Encoding": "deflate"}),
    infer("gzip_request_that_is_none", _PLAIN, **_GZIP),
    infer("unknown_coding", _PLAIN, **{"Content-Encoding": "wat"}),
    infer("gzip_answer", inputs(TEXT), **{"Accept-Encoding": "gzip"}),
    infer("deflate_answer", inputs(TEXT), **{"Accept-Encoding": "deflate"}),
    infer("gzip_or_deflate_answer", inputs(TEXT), **{"Accept-Encoding": "gzip, deflate"}),
    infer("deflate_rather_than_gzip", inputs(TEXT), **{"Accept-Encoding": "gzip;q=0.5, deflate;q=0.8"}),
    infer("identity_rather_than_gzip", inputs(TEXT), **{"Accept-Encoding": "identity, gzip;q=0.5"}),
    infer("no_gzip_answer", inputs(TEXT), **{"Accept-Encoding": "gzip;q=0"}),
    infer("any_coding", inputs(TEXT), **{"Accept-Encoding": "*"}),
    infer("unknown_coding_of_the_answer", inputs(TEXT), **{"Accept-Encoding": "wat"}),
    infer(
        "gzip_binary_answer", inputs(TEXT, parameters={"binary_data_output": True}), **{"Accept-Encoding": "gzip"}
    ),
    infer("gzip_error", b"{bad", **{"Accept-Encoding": "gzip"}),
    get("gzip_metadata", "/v2/models/m", **{"Accept-Encoding": "gzip"}),
    infer("no_body", b""),
    infer("bad_json", b"{bad"),
    infer("unclosed_json", b'{"inputs": ['),
    infer("more_after_the_json", b'{"inputs": []} x'),
    infer("an_unclosed_text", b'{"inputs": "a'),
    infer("a_missing_colon", b'{"inputs" 1}'),
    infer("a_missing_comma", b'{"inputs": [] "id": 1}'),
    infer("a_list_with_a_missing_comma", b'{"inputs": [1 2]}'),
    infer("a_bad_escape", b'{"inputs": "\\x"}'),
    infer("not_a_number", b'{"inputs": NaN}'),
    infer("a_list", []),
    infer("no_inputs", {}),
    infer("empty_inputs", inputs()),
    infer("inputs_no_list", {"inputs": 5}),
    infer("input_no_object", {"inputs": [5]}),
    infer("input_without_name", inputs(changed(TEXT, name=None))),
    infer("input_without_shape", inputs(changed(TEXT, shape=None))),
    infer("input_without_datatype", inputs(changed(TEXT, datatype=None))),
    infer("input_without_data", inputs(changed(TEXT, data=None))),
    infer("input_name_no_text", inputs(changed(TEXT, name=5))),
    infer("input_shape_no_list", inputs(changed(TEXT, shape=5))),
    infer("input_shape_of_texts", inputs(changed(TEXT, shape=["1"]))),
    infer("input_shape_negative", inputs(changed(TEXT, shape=[-1]))),
    # In binary: written as JSON, a shape like this ends a server of this version.
    infer(
        "input_shape_huge",
        inputs(changed(IDS, data=None, shape=[2**62], parameters={"binary_data_size": 12})),
        struct.pack("<3i", 1, 2, 3),
    ),
    infer("input_datatype_unknown", inputs(changed(TEXT, datatype="WAT"))),
    infer("input_datatype_wrong", inputs(changed(IDS, datatype="INT64"))),
    infer("input_unknown", inputs(TEXT, changed(TEXT, name="nothing"))),
    infer("input_twice", inputs(TEXT, TEXT)),
    infer("input_shape_wrong", inputs(changed(TEXT, shape=[2], data=["a", "b"]))),
    infer("input_rank_wrong", inputs(changed(TEXT, shape=[1, 1]))),
    infer("data_of_another_size", inputs(changed(IDS, data=[1, 2]))),
    infer("data_of_another_type", inputs(changed(IDS, data=["a", "b", "c"]))),
    infer("data_too_large", inputs(changed(IDS, data=[2**31, 0, 0]))),
    infer("texts_that_are_numbers", inputs(changed(TEXT, data=[5]))),
    infer("too_many_texts", inputs(changed(TEXT, data=["a", "b"]))),
    infer("half_precision_in_json", inputs(changed(IDS, datatype="FP16"))),
    infer("data_and_binary", inputs(changed(TEXT, parameters={"binary_data_size": 6})), BINARY_HI),
    infer("binary_size_too_large", inputs(changed(BINARY_TEXT, parameters={"binary_data_size": 60})), BINARY_HI),
    infer("binary_size_negative", inputs(changed(BINARY_TEXT, parameters={"binary_data_size": -1})), BINARY_HI),
    infer("binary_size_no_number", inputs(changed(BINARY_TEXT, parameters={"binary_data_size": "6"})), BINARY_HI),
    infer("binary_left_over", inputs(BINARY_TEXT), BINARY_HI + b"more"),
    infer("binary_text_cut_off", inputs(changed(BINARY_TEXT, parameters={"binary_data_size": 5})), BINARY_HI[:5]),
    infer(
        "binary_numbers_cut_off",
        inputs(changed(IDS, data=None, parameters={"binary_data_size": 8})),
        struct.pack("<2i", 1, 2),
    ),
    infer("header_length_zero", inputs(TEXT), length="0"),
    infer("header_length_negative", inputs(TEXT), length="-1"),
    infer("header_length_no_number", inputs(TEXT), length="x"),
    infer("header_length_too_large", inputs(TEXT), length="100000"),
    infer("id_no_text", inputs(TEXT, id=5)),
    infer("parameters_no_object", inputs(TEXT, parameters=5)),
    infer("parameter_a_list", inputs(TEXT, parameters={"x": [1]})),
    infer("parameter_a_number_with_a_point", inputs(TEXT, parameters={"x": 0.5})),
    infer("parameter_of_tritons", inputs(TEXT, parameters={"triton_x": 1})),
    infer("sequence_id_a_bool", inputs(TEXT, parameters={"sequence_id": True})),
    infer("sequence_start_a_number", inputs(TEXT, parameters={"sequence_start": 1})),
    infer("priority_a_text", inputs(TEXT, parameters={"priority": "high"})),
    infer("timeout_a_text", inputs(TEXT, parameters={"timeout": "soon"})),
    infer("binary_data_output_a_number", inputs(TEXT, parameters={"binary_data_output": 1})),
    infer("outputs_no_list", inputs(TEXT, outputs=5)),
    infer("output_without_name", inputs(TEXT, outputs=[{}])),
    infer("output_unknown", inputs(TEXT, outputs=[{"name": "nothing"}])),
    infer("classification", inputs(TEXT, outputs=[{"name": "output_ids", "parameters": {"classification": 1}}])),
    infer(
        "input_in_shared_memory",
        inputs(
            changed(
                TEXT, data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 6}
            )
        ),
    ),
    infer(
        "output_in_shared_memory",
        inputs(
            TEXT,
            outputs=[
                {"name": "text_output", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 6}}
            ],
        ),
    ),
)  # fmt: skip

_COUNTED = (
    get("statistics", "/v2/models/m/stats"),
    get("statistics_version", "/v2/models/m/versions/1/stats"),
    get("statistics_version_unknown", "/v2/models/m/versions/7/stats"),
    get("statistics_unknown", "/v2/models/nope/stats"),
    get("statistics_never_loaded", "/v2/models/stranger/stats"),
    get("statistics_of_all", "/v2/models/stats"),
)

_REPOSITORY = (
    post("index", "/v2/repository/index"),
    post("index_empty_object", "/v2/repository/index", {}),
    post("index_ready", "/v2/repository/index", {"ready": True}),
    post("index_bad_json", "/v2/repository/index", b"{bad"),
    post("index_ready_a_number", "/v2/repository/index", {"ready": 5}),
    post("index_of_a_repository", "/v2/repository/r/index"),
    post("load_of_a_repository", "/v2/repository/r/models/plain/load"),
    post("unload_of_a_repository", "/v2/repository/r/models/nope/unload"),
    post("load_again", "/v2/repository/models/plain/load"),
    post("load_empty_object", "/v2/repository/models/plain/load", {}),
    post("load_bad_json", "/v2/repository/models/plain/load", b"{bad"),
    post("load_unknown", "/v2/repository/models/nope/load"),
    post("load_broken", "/v2/repository/models/broken/load"),
    post("load_parameters_no_object", "/v2/repository/models/plain/load", {"parameters": 5}),
    post("load_unknown_parameter", "/v2/repository/models/plain/load", {"parameters": {"nothing": "x"}}),
    post("load_parameter_a_number", "/v2/repository/models/plain/load", {"parameters": {"config": 5}}),
    post("load_config_no_json", "/v2/repository/models/plain/load", {"parameters": {"config": "{bad"}}),
    post("load_file_without_config", "/v2/repository/models/plain/load", {"parameters": {"file:1/x": "eA=="}}),
    post("unload_unknown", "/v2/repository/models/nope/unload"),
    post("unload_never_loaded", "/v2/repository/models/sleeper/unload"),
    post("unload_bad_json", "/v2/repository/models/nope/unload", b"{bad"),
    post("unload_dependents", "/v2/repository/models/nope/unload", {"parameters": {"unload_dependents": True}}),
    post("unload_dependents_a_text", "/v2/repository/models/nope/unload", {"parameters": {"unload_dependents": "x"}}),
    post("unload_unknown_parameter", "/v2/repository/models/nope/unload", {"parameters": {"nothing": 1}}),
)

HTTP_CALLS = (*_DESCRIPTIONS, *_SETTINGS, *_MEMORY, *_GENERATE, *_INFER, *_COUNTED, *_REPOSITORY)
