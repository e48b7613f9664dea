"""What passes to other backends' models: some of these shapes ended a stock model of tritonserver 2.51."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.errors import InvalidRequest
from serverless_triton.scheduler.gateway.http_infer import read_infer_body
from serverless_triton.scheduler.gateway.tensor_sizes import bounded_product, check_sizes
from tests.unit.gateway.samples import add_model

SEVEN = b"\x07\0\0\0"
OVERFLOW = "byte size overflow for input 'x' for model 'one' with shape "
MISMATCH = "input byte size mismatch for input 'x' for model 'one'. Expected "
NEGATIVE = "All input dimensions should be specified for input 'x' for model 'one', got "


@pytest.fixture
def entry(tmp_path):
    def entry(batch: int = 0):
        tensor = "input [{ name: 'x' data_type: TYPE_INT32 dims: [-1] }]"
        add_model(tmp_path, "one", f'backend: "python" max_batch_size: {batch} {tensor}')
        return Catalogue(tmp_path).entry("one")

    return entry


def asking(shape: list[int], raw: bytes | None, kind: str = "INT32") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="one", id="i1")
    request.inputs.add(name="x", datatype=kind, shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


@pytest.mark.parametrize(
    ("kind", "shape", "raw", "words"),
    [
        ("INT32", [2**62], b"", f"{OVERFLOW}[4611686018427387904]"),
        ("INT32", [2**62 + 1], SEVEN, f"{OVERFLOW}[4611686018427387905]"),
        ("INT32", [2**33, 2**33], b"", f"{OVERFLOW}[8589934592,8589934592]"),
        ("INT32", [2**31, 2**31, 4], b"", OVERFLOW),
        ("INT32", [0, 2**61], b"", OVERFLOW),
        ("INT32", [2**62], None, OVERFLOW),
        ("INT64", [2**60], b"", OVERFLOW),
        ("BYTES", [2**32, 2**32], b"", OVERFLOW),
        ("BYTES", [0, 2**60], b"", OVERFLOW),
        ("INT32", [-(2**63)], b"", f"{NEGATIVE}[-9223372036854775808]"),
        ("INT32", [-2, -(2**62)], b"", NEGATIVE),
        ("BYTES", [-1], b"", NEGATIVE),
        ("INT32", [2], SEVEN, f"{MISMATCH}8, got 4"),
        ("INT32", [0], SEVEN, f"{MISMATCH}0, got 4"),
        ("INT32", [2**40], b"", f"{MISMATCH}4398046511104, got 0"),
        ("FP16", [1], SEVEN, f"{MISMATCH}2, got 4"),
    ],
)
def test_a_shape_that_would_end_its_models_process_is_refused(entry, kind, shape, raw, words):
    with pytest.raises(InvalidRequest) as refused:
        check_sizes(asking(shape, raw, kind), entry())
    assert str(refused.value).startswith(f"[request id: i1] {words}")


def test_values_that_are_no_raw_bytes_are_counted_too(entry):
    request = asking([2], None)
    request.inputs[0].contents.int_contents.append(7)
    with pytest.raises(InvalidRequest, match="Expected 8, got 4"):
        check_sizes(request, entry())


@pytest.mark.parametrize(
    ("batch", "words"),
    [(0, "must be >= 1 for 'one'"), (9, "must be <= 8 for 'one'"), (2**40, "must be <= 8 for 'one'")],
)
def test_a_batch_that_triton_would_never_answer_is_refused(entry, batch, words):
    with pytest.raises(InvalidRequest, match=words):
        check_sizes(asking([batch, 0], b""), entry(batch=8))


@pytest.mark.parametrize(
    ("kind", "shape", "raw"),
    [
        ("INT32", [1], SEVEN),
        ("INT32", [0], b""),
        ("INT32", [0, 2**60], b""),
        ("INT32", [2], None),  # no data at all
        ("NOTHING", [2], SEVEN),
        ("BYTES", [2], b""),
        ("BYTES", [1], b"\xff\xff\xff\xff"),
    ],
)
def test_everything_else_is_for_triton_to_say(entry, kind, shape, raw):
    check_sizes(asking(shape, raw, kind), entry())


def test_a_shape_of_many_dimensions_is_not_multiplied_out(entry):
    with pytest.raises(InvalidRequest, match="overflow"):
        check_sizes(asking([2**62] * 1_000_000, b""), entry())


def test_nor_is_one_in_json(entry):
    shape = b",".join([b"4611686018427387904"] * 200_000)
    body = b'{"inputs": [{"name": "x", "datatype": "INT32", "shape": [%s], "data": [1]}]}' % shape
    with pytest.raises(InvalidRequest, match="Shape does not match true shape"):
        read_infer_body(body, None, entry(), "1")


@pytest.mark.parametrize(("factors", "product"), [([], 1), ([2, 3], 6), ([2, 4], None), ([2**62] * 9 + [0], 0)])
def test_a_product_is_given_as_far_as_its_bound(factors, product):
    assert bounded_product(factors, 6) == product
