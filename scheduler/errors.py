"""What the scheduler refuses, and how a client hears of it.

SchedulerError
├── InvalidModelName   a name that could not be a directory of the model repository
├── UnknownModel       the model repository has no such model
├── InvalidRequest     tensors, parameters or JSON that the model does not take
│   └── Unsupported    something of Triton's that this gateway does not do (gateway/service.py)
├── LoadFailed         a server tried to start the model and could not; carries the cause
├── ModelTooLarge      no server has what it needs, whatever else runs
├── NoCapacity         too many wait for it already
├── AdmissionTimeout   it did not start within the request's time
├── StreamLost         a stream broke and could not be continued anywhere
├── UpstreamError      how a call to a server ended; most are resumed, some reach the client (gateway/upstream.py)
└── ConfigError        the scheduler's configuration is wrong at a path (config.py)
"""

from __future__ import annotations


class SchedulerError(Exception):
    """Base. `code` is the gRPC status name a client sees."""

    code = "INTERNAL"


class InvalidModelName(SchedulerError):
    code = "INVALID_ARGUMENT"


class UnknownModel(SchedulerError):
    code = "NOT_FOUND"


class InvalidRequest(SchedulerError):
    code = "INVALID_ARGUMENT"


class LoadFailed(SchedulerError):
    code = "UNAVAILABLE"

    def __init__(self, message: str, code: str = "UNAVAILABLE") -> None:
        super().__init__(message)
        self.code = code


class ModelTooLarge(SchedulerError):
    code = "INVALID_ARGUMENT"


class NoCapacity(SchedulerError):
    code = "RESOURCE_EXHAUSTED"


class AdmissionTimeout(SchedulerError):
    code = "DEADLINE_EXCEEDED"


class StreamLost(SchedulerError):
    code = "UNAVAILABLE"
