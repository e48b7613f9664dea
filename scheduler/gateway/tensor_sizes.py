"""Tensors that pass through to other backends' models: refused where their shape alone would harm the server.

Triton 2.51 counts a shape's bytes modulo 2^64 and its batch modulo 2^32. So a shape that comes round to the bytes that
are there reaches the model: its Python backend's process ends in making the array, for everybody, and a batch of none
is never answered. What is wrong otherwise is for Triton to say, whose words these are where it has any.
"""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.catalogue import ModelEntry
from serverless_triton.scheduler.gateway.tensors import (
    ELEMENT_BYTES,
    TYPED_FIELDS,
    dims,
    refusal,
    size_mismatch,
    unspecified_dims,
)

_MOST_BYTES = 2**63 - 1  # numpy's, zeros left out: it makes no room for an array of (0, 2**62) either
_STRING_BYTES = 8  # of an array of strings: a pointer each


def check_sizes(request: pb.ModelInferRequest, entry: ModelEntry) -> None:
    """Of each input that has a data type. Raises InvalidRequest."""
    for number, tensor in enumerate(request.inputs):
        if any(size < 0 for size in tensor.shape):
            raise unspecified_dims(request.id, tensor.name, tensor.shape, entry)
        if entry.config.max_batch_size and tensor.shape:
            _check_batch(request.id, tensor.shape[0], entry)
        if tensor.datatype == "BYTES":
            _check_span(request.id, tensor, _STRING_BYTES, entry)
        elif tensor.datatype in ELEMENT_BYTES:
            _check_span(request.id, tensor, ELEMENT_BYTES[tensor.datatype], entry)
            _check_bytes(request, number, entry)


def _check_batch(request_id: str, batch: int, entry: ModelEntry) -> None:
    most = entry.config.max_batch_size
    if not 1 <= batch <= most:
        bound = f"<= {most}" if batch else ">= 1"
        raise refusal(request_id, f"inference request batch-size must be {bound} for '{entry.name}'")


def _check_span(
    request_id: str, tensor: pb.ModelInferRequest.InferInputTensor, element_bytes: int, entry: ModelEntry
) -> None:
    if bounded_product([size for size in tensor.shape if size], _MOST_BYTES // element_bytes) is None:
        raise refusal(
            request_id,
            f"byte size overflow for input '{tensor.name[:128]}' for model '{entry.name}' with shape "
            f"{dims(tensor.shape)}",
        )


def _check_bytes(request: pb.ModelInferRequest, number: int, entry: ModelEntry) -> None:
    """That there are as many as the shape says, where there are any at all."""
    tensor = request.inputs[number]
    found = _bytes_found(request, number)
    count = bounded_product(tensor.shape, _MOST_BYTES)
    assert count is not None  # `_check_span` came before
    if found is not None and found != count * ELEMENT_BYTES[tensor.datatype]:
        raise size_mismatch(request.id, tensor.name, count * ELEMENT_BYTES[tensor.datatype], found, entry)


def _bytes_found(request: pb.ModelInferRequest, number: int) -> int | None:
    """None where Triton finds no data, or data of another type, and says so."""
    if request.raw_input_contents:
        return len(request.raw_input_contents[number]) if number < len(request.raw_input_contents) else None
    tensor = request.inputs[number]
    values = getattr(tensor.contents, TYPED_FIELDS[tensor.datatype], ()) if tensor.datatype in TYPED_FIELDS else ()
    return len(values) * ELEMENT_BYTES[tensor.datatype] if values else None


def bounded_product(factors: Sequence[int], most: int) -> int | None:
    """None where it is more. A client decides how many factors there are, and all of them together take long."""
    if 0 in factors:
        return 0
    product = 1
    for factor in factors:
        product *= factor
        if product > most:
            return None
    return product
