"""Settings and shared memory over gRPC: what `server_settings.py` and `shared_memory.py` say, in Triton's messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.gateway import shared_memory
from serverless_triton.scheduler.gateway.server_settings import (
    LOG,
    TRACE,
    check_log,
    check_trace,
    log_from_message,
    trace_from_message,
)
from serverless_triton.scheduler.gateway.service import InferenceService


def _trace(service: InferenceService, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
    service.check_traced(request.model_name)
    check_trace(trace_from_message(request.settings), "the server does not support trace")
    response = pb.TraceSettingResponse()
    for name, values in TRACE.items():
        response.settings[name].value.extend(values)
    return response


def _log(service: InferenceService, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
    check_log(log_from_message(request.settings))
    response = pb.LogSettingsResponse()
    for name, value in LOG.items():
        kind = "bool_param" if isinstance(value, bool) else "uint32_param" if isinstance(value, int) else "string_param"
        setattr(response.settings[name], kind, value)
    return response


def _system_status(service: InferenceService, request: Any) -> pb.SystemSharedMemoryStatusResponse:
    shared_memory.check_status("system", request.name)
    return pb.SystemSharedMemoryStatusResponse()


def _cuda_status(service: InferenceService, request: Any) -> pb.CudaSharedMemoryStatusResponse:
    shared_memory.check_status("cuda", request.name)
    return pb.CudaSharedMemoryStatusResponse()


def _system_register(service: InferenceService, request: Any) -> Message:
    raise shared_memory.refuse_system(request.key)


def _cuda_register(service: InferenceService, request: Any) -> Message:
    raise shared_memory.refuse_cuda()


def _system_unregister(service: InferenceService, request: Any) -> pb.SystemSharedMemoryUnregisterResponse:
    return pb.SystemSharedMemoryUnregisterResponse()


def _cuda_unregister(service: InferenceService, request: Any) -> pb.CudaSharedMemoryUnregisterResponse:
    return pb.CudaSharedMemoryUnregisterResponse()


CALLS: Mapping[str, Callable[[InferenceService, Any], Message]] = {
    "TraceSetting": _trace,
    "LogSettings": _log,
    "SystemSharedMemoryStatus": _system_status,
    "SystemSharedMemoryRegister": _system_register,
    "SystemSharedMemoryUnregister": _system_unregister,
    "CudaSharedMemoryStatus": _cuda_status,
    "CudaSharedMemoryRegister": _cuda_register,
    "CudaSharedMemoryUnregister": _cuda_unregister,
}
