"""What obstore's exceptions mean here: worth asking again, or one of our errors. Pure.

Their texts hold what the server sent and where a redirect led, signed links included, so none of it is passed on: only
the kind of the failure and the HTTP status are taken from them.
"""

from __future__ import annotations

import re

from obstore import exceptions

from ..errors import CheckpointNotFound, CheckpointTruncated, LoaderError, RemoteDenied, RemoteUnsuitable

_STATUS = re.compile(r"status code: (\d{3})")
_RETRIED_STATUSES = (408, 425, 429)
_KINDS = (
    ("TimedOut", "it took too long"),
    ("kind: Timeout", "it took too long"),
    ("kind: Connect", "it cannot be reached"),
    ("following redirect", "its redirects lead nowhere"),
    ("IncompleteBody", "the connection was cut"),
    ("kind: Interrupted", "the connection was cut"),
    ("body error", "the connection was cut"),
    ("Content-Range", "its Content-Range header is missing or malformed"),
    ("Requested ", "it sent another range than was asked for"),
)


class TransientFailure(Exception):
    """One request failed in a way that may pass. Never leaves this package."""


def translated(error: Exception, url: str) -> LoaderError | TransientFailure:
    """The error to raise instead. `url` is safe to be shown."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return CheckpointNotFound(f"there is no {url}; check the URL")
    if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)):
        return _denied(url)
    if isinstance(error, exceptions.NotSupportedError):
        return RemoteUnsuitable(f"the server of {url} does not serve ranges; use one that does, or download the file")
    if "Content-Length" in text:
        return RemoteUnsuitable(f"the server of {url} does not say how long it is; use one that does")
    found = _STATUS.search(text)
    return _of_status(int(found[1]), url) if found else TransientFailure(_kind_of(text))


def _of_status(status: int, url: str) -> LoaderError | TransientFailure:
    if status >= 500 or status in _RETRIED_STATUSES:
        return TransientFailure(f"it answers with HTTP status {status}")
    if status in (401, 403, 407):
        return _denied(url)
    if status == 416:
        return CheckpointTruncated(f"{url} is shorter than it was said to be, or empty; upload it again")
    if status in (404, 410):
        return CheckpointNotFound(f"there is no {url} (HTTP status {status}); check the URL")
    return RemoteUnsuitable(
        f"the server of {url} answers with HTTP status {status}; check the URL, and for s3:// the region (AWS_REGION)"
    )


def _denied(url: str) -> RemoteDenied:
    return RemoteDenied(
        f"{url} may not be read with the credentials that the store has; give its environment AWS_* for s3://, "
        "HF_TOKEN for hf://, and check that they may read it"
    )


def _kind_of(text: str) -> str:
    return next((meaning for sign, meaning in _KINDS if sign in text), "the request failed")
