"""When to ask again, as each protocol says it."""

from __future__ import annotations

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory

from serverless_triton.scheduler.errors import InvalidRequest, LoadFailed, NoCapacity
from serverless_triton.scheduler.gateway.statuses import error_headers, trailing_metadata


def rpc_messages():
    """google.rpc's Status and RetryInfo, made by protobuf itself from their definitions."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="rpc.proto", package="google.rpc", syntax="proto3")
    file.dependency.extend([any_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name])
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, type=kinds.TYPE_INT32, label=kinds.LABEL_OPTIONAL)
    status.field.add(name="message", number=2, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    details = status.field.add(name="details", number=3, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED)
    details.type_name = ".google.protobuf.Any"
    info = file.message_type.add(name="RetryInfo")
    delay = info.field.add(name="retry_delay", number=1, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL)
    delay.type_name = ".google.protobuf.Duration"
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2.DESCRIPTOR, duration_pb2.DESCRIPTOR):
        pool.AddSerializedFile(known.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}"))
        for name in ("Status", "RetryInfo")
    ]


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (86400.0, "86400")])
def test_http_says_whole_seconds_and_never_none_at_all(seconds, header):
    assert error_headers(NoCapacity("full", retry_after_s=seconds)) == {"Retry-After": header}


@pytest.mark.parametrize("error", [InvalidRequest("no"), NoCapacity("full"), LoadFailed("truncated")])
def test_nothing_is_said_where_asking_again_is_no_remedy(error):
    assert error_headers(error) == {}
    assert trailing_metadata(error) == ()


@pytest.mark.parametrize("message", ["full", "ü" * 100, "x" * 20_000])
@pytest.mark.parametrize("seconds", [0.0, 0.25, 7.0, 1234.000000001])
def test_grpc_carries_retry_info_that_protobuf_reads(message, seconds):
    metadata = dict(trailing_metadata(NoCapacity(message, retry_after_s=seconds)))
    status_type, info_type = rpc_messages()
    status = status_type.FromString(metadata["grpc-status-details-bin"])
    assert (status.code, status.message) == (8, message)
    (detail,) = status.details
    assert detail.type_url == "type.googleapis.com/google.rpc.RetryInfo"
    delay = info_type.FromString(detail.value).retry_delay
    assert delay.seconds + delay.nanos / 1e9 == pytest.approx(seconds)
    assert metadata["retry-after"] == error_headers(NoCapacity("", retry_after_s=seconds))["Retry-After"]
