"""Infer requests over gRPC that are wrong in many ways, by seed: fields replaced, bytes changed, cut off, or noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tests.unit.gateway.samples import flag, infer_request

_TEXTS = (
    "", "m", "nope", "..", "a/b", "x" * 300, "é", "\x00", "text_input", "input_ids", "messages", "sampling_parameters",
    "stream", "resume_token_ids", "attempt", "INT32", "BYTES", "FP16", "WAT", "1", "-1", "triton_x", "priority",
    "timeout", "text_output", "output_ids", "reservation",
)  # fmt: skip
_NUMBERS = (0, 1, 2, -1, -(2**63), 2**63 - 1, 2**31, 2**33, 2**62, 1_000_000)
_RAWS = (
    b"", b"\x00", b"\x01\x00\x00\x00x", b"\xff\xff\xff\xffx", b"\x02\x00\x00\x00\xff\xfe", b"\x01", b"a" * 1000,
    b"\x02\x00\x00\x00{}", b"\x01\x00\x00\x00[",
)  # fmt: skip


def bad_message(seed: int, sound: pb.ModelInferRequest | None = None) -> bytes:
    """What a sound one becomes: without another, one for `m`. A few of them happen to be sound still."""
    source = random.Random(seed)
    request = infer_request(*([flag("stream")] if source.random() < 0.5 else []))
    if sound is not None:
        request.CopyFrom(sound)
    for _ in range(source.randint(1, 4)):
        source.choice(_MUTATIONS)(source, request)
    return _spoilt(source, request.SerializeToString())


def _name(source: random.Random, request: pb.ModelInferRequest) -> None:
    setattr(request, source.choice(("model_name", "model_version", "id")), source.choice(_TEXTS))


def _parameter(source: random.Random, request: pb.ModelInferRequest) -> None:
    owners = [request, *request.inputs, *request.outputs]
    parameter = source.choice(owners).parameters[source.choice(_TEXTS)]
    kinds: dict[str, Any] = {
        "bool_param": True,
        "int64_param": source.choice(_NUMBERS),
        "uint64_param": 2**64 - 1,
        "string_param": source.choice(_TEXTS),
        "double_param": source.choice((0.5, math.nan, math.inf)),
    }
    kind = source.choice(list(kinds))
    setattr(parameter, kind, kinds[kind])


def _tensor(source: random.Random, request: pb.ModelInferRequest) -> None:
    tensor = source.choice(request.inputs)
    setattr(tensor, source.choice(("name", "datatype")), source.choice(_TEXTS))


def _shape(source: random.Random, request: pb.ModelInferRequest) -> None:
    tensor = source.choice(request.inputs)
    tensor.shape[:] = [source.choice(_NUMBERS) for _ in range(source.randint(0, 3))]


def _raw(source: random.Random, request: pb.ModelInferRequest) -> None:
    request.raw_input_contents.append(source.choice(_RAWS))
    if source.random() < 0.7:
        request.raw_input_contents[source.randrange(len(request.raw_input_contents))] = source.choice(_RAWS)
    if source.random() < 0.3:
        del request.raw_input_contents[:]


def _typed(source: random.Random, request: pb.ModelInferRequest) -> None:
    contents = source.choice(request.inputs).contents
    fields: tuple[Callable[[], None], ...] = (
        lambda: contents.int_contents.append(-1),
        lambda: contents.bytes_contents.append(source.choice(_RAWS)),
        lambda: contents.bool_contents.append(True),
        lambda: contents.fp32_contents.append(math.nan),
        lambda: contents.uint64_contents.append(2**64 - 1),
    )
    source.choice(fields)()


def _output(source: random.Random, request: pb.ModelInferRequest) -> None:
    request.outputs.add(name=source.choice(_TEXTS))


_MUTATIONS = (_name, _parameter, _tensor, _shape, _raw, _typed, _output)


def _spoilt(source: random.Random, data: bytes) -> bytes:
    drawn = source.random()
    if drawn < 0.1:
        return data[: source.randint(0, len(data))]
    if drawn < 0.2:
        changed = bytearray(data)
        for _ in range(source.randint(1, 5)):
            changed[source.randrange(len(changed))] = source.randrange(256)
        return bytes(changed)
    return source.randbytes(source.randint(0, 200)) if drawn < 0.25 else data
