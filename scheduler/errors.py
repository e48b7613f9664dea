"""What the scheduler refuses, and how a client hears of it.

SchedulerError
├── InvalidModelName   a name that could not be a directory of the model repository
├── UnknownModel       the model repository has no such model
├── RepositoryAway     the model repository's file system is not there, so nobody knows what it has
├── InvalidRequest     tensors, parameters or JSON that the model does not take
│   ├── Unsupported    something of Triton's that this gateway does not do (gateway/service.py)
│   ├── UnknownCoding  a body compressed in a way that nobody reads (gateway/http_body.py)
│   ├── UnknownRegion, CannotOpen    shared memory, of which there is none (gateway/shared_memory.py)
│   └── Unavailable, FixedFile       settings that stay what they are (gateway/server_settings.py)
├── LoadFailed         a server tried to start the model and could not; carries the cause
├── ModelTooLarge      no server has what it needs, whatever else runs
├── NoCapacity         too many wait for it already
├── Overloaded         the requests that are being served hold all the memory that they may
├── Unauthenticated    no key, or one that nobody has
├── Forbidden          the key's owner may not do that
├── RateLimited        the key has had what it may have; carries when to come again
├── AdmissionTimeout   it did not start within the request's time
├── StreamLost         a stream broke and could not be continued anywhere
├── UpstreamError      how a call to a server ended; most are resumed, some reach the client (gateway/upstream.py)
│   ├── LinkBroke      in gRPC's words, which no client hears (gateway/upstream.py)
│   └── DeadlineExceeded   it was not over within the request's time, or the gateway's (gateway/watchdog.py)
├── CertificateUnusable a file that TLS needs cannot be read, or does not belong to the others
├── AnnouncementRefused  a server that may not join as it says (registration.py)
├── StateError         what is kept beyond the process, or who leads (state/protocol.py)
└── ConfigError        the scheduler's configuration is wrong at a path (config.py)
"""

from __future__ import annotations

from typing import Literal

_AWAY_S = 5.0  # until a file system may be back


class SchedulerError(Exception):
    """Base. `code` is the gRPC status name a client sees.

    `retry_after_s` is when the same request may go better, as far as anybody can tell; None: asking again is no remedy.
    """

    code = "INTERNAL"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InvalidModelName(SchedulerError):
    code = "INVALID_ARGUMENT"


class UnknownModel(SchedulerError):
    code = "NOT_FOUND"


class RepositoryAway(SchedulerError):
    """Its path is the operator's to know, and in the log."""

    code = "UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__("the model repository cannot be read now", retry_after_s=_AWAY_S)


class InvalidRequest(SchedulerError):
    code = "INVALID_ARGUMENT"


class LoadFailed(SchedulerError):
    code = "UNAVAILABLE"

    def __init__(self, message: str, code: str = "UNAVAILABLE", *, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.code = code


class ModelTooLarge(SchedulerError):
    code = "INVALID_ARGUMENT"


class NoCapacity(SchedulerError):
    code = "RESOURCE_EXHAUSTED"


class Overloaded(SchedulerError):
    code = "RESOURCE_EXHAUSTED"


class Unauthenticated(SchedulerError):
    code = "UNAUTHENTICATED"


class Forbidden(SchedulerError):
    code = "PERMISSION_DENIED"


class RateLimited(SchedulerError):
    """`what` ran out: "requests" or "tokens" for the moment, or the day's "quota"."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, what: Literal["requests", "tokens", "quota"], retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.what = what


class AdmissionTimeout(SchedulerError):
    code = "DEADLINE_EXCEEDED"


class CertificateUnusable(SchedulerError):
    pass


class StreamLost(SchedulerError):
    code = "UNAVAILABLE"
