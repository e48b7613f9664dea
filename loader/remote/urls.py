"""URLs of checkpoints: which are accepted, and the one spelling under which each is known. Pure.

    https://host/path/model.safetensors      s3://bucket/prefix      hf://org/model[@revision]      file:///srv/model

A URL is an identity: it stands in statuses, logs and manifests, so it holds no secrets. Credentials and queries (which
presigned links use for theirs) are refused.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import quote, unquote, urlsplit

from ..errors import RemoteUrlRefused

Scheme = Literal["https", "http", "s3", "file", "hf"]

MAX_URL_BYTES = 4096
_SAFE_TEXT = re.compile(r"[!-\[\]-~]+")  # printable ASCII without blanks and backslashes
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HUB_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteUrl:
    """A checked URL.

    `path` is %-encoded, without leading and trailing slashes; `revision` is of hf:// alone, "" for the default one.
    """

    scheme: Scheme
    host: str
    path: str
    revision: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.scheme}://{self.host}/{self.path}".rstrip("/") + revision

    @property
    def local_path(self) -> str:
        """What a file:// URL names."""
        return f"/{unquote(self.path)}"

    @property
    def name(self) -> str:
        """The last segment, decoded."""
        return unquote(self.path.rsplit("/", 1)[-1])

    @property
    def parent(self) -> RemoteUrl:
        """The directory that the URL's file lies in."""
        return RemoteUrl(scheme=self.scheme, host=self.host, path=self.path.rpartition("/")[0])

    def child(self, name: str) -> str:
        """The URL of a file in this directory. `name` is a plain file name."""
        return f"{self}/{quote(name, safe='')}"


def parse_url(text: str, *, allow_http: bool = False) -> RemoteUrl:
    """Checks a URL. http:// is for this machine alone unless `allow_http`. Raises RemoteUrlRefused."""
    shown = without_secrets(text)
    if len(text) > MAX_URL_BYTES or not _SAFE_TEXT.fullmatch(text):
        raise _refused(shown[:200], "use at most 4096 printable ASCII characters and encode others with %")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _refused(shown, f"it is no URL ({error})") from error
    if parts.scheme not in get_args(Scheme):
        raise _refused(shown, f"use one of {', '.join(f'{name}://' for name in get_args(Scheme))}")
    scheme: Scheme = parts.scheme  # type: ignore[assignment]  # checked in the line above
    if scheme == "hf":
        return _hub_url(text, shown)
    _check_no_secrets(shown, "@" in parts.netloc, "?" in text, "#" in text)
    host = parts.netloc.lower() if scheme != "s3" else parts.netloc
    _check_host(shown, scheme, parts.hostname or "", port, allow_http=allow_http)
    return RemoteUrl(scheme=scheme, host=host, path=_checked_path(shown, parts.path))


def without_secrets(text: str) -> str:
    """A URL as it may be shown: without user information, query and fragment."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    rest = rest.split("?", 1)[0].split("#", 1)[0]
    if scheme.lower() == "hf":
        return f"{scheme}://{rest if ':' not in rest else '...'}"
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def _check_no_secrets(shown: str, has_user: bool, has_query: bool, has_fragment: bool) -> None:
    if has_user:
        raise _refused(shown, "it holds credentials; give them to the store's environment instead")
    if has_query or has_fragment:
        raise _refused(shown, "it has a query or fragment, which may hold a secret and would be shown; give it without")


def _check_host(shown: str, scheme: Scheme, host: str, port: int | None, *, allow_http: bool) -> None:
    if scheme == "file":
        if host not in ("", "localhost"):
            raise _refused(shown, "a file:// URL names a file of this machine: file:///path")
        return
    if not host:
        raise _refused(shown, "it names no host or bucket")
    if scheme == "s3" and port is not None:
        raise _refused(shown, "a bucket has no port; give the endpoint with AWS_ENDPOINT_URL")
    if scheme == "http" and not allow_http and not is_loopback(host):
        raise _refused(shown, "http:// would bring weights unprotected; use https://")


def is_loopback(host: str) -> bool:
    """Whether a host name can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked_path(shown: str, path: str) -> str:
    segments = path.strip("/").split("/") if path.strip("/") else []
    for segment in segments:
        decoded = unquote(segment, errors="replace")
        if "\ufffd" in decoded or decoded in ("", ".", "..") or set(decoded) & {"/", "\\"} or not decoded.isprintable():
            raise _refused(shown, f"its part {segment!r} could lead elsewhere; give the plain path")
    return "/".join(segments)


def _hub_url(text: str, shown: str) -> RemoteUrl:
    repository, has_revision, revision = text.removeprefix("hf://").rstrip("/").partition("@")
    names = repository.split("/")
    plain = len(names) in (1, 2) and all(_HUB_NAME.fullmatch(name) and ".." not in name for name in names)
    if not plain or (has_revision and (not _HUB_REVISION.fullmatch(revision) or ".." in revision or "//" in revision)):
        raise _refused(shown, "use hf://organisation/model or hf://organisation/model@revision")
    return RemoteUrl(scheme="hf", host=names[0], path="/".join(names[1:]), revision=revision)


def _refused(shown: str, reason: str) -> RemoteUrlRefused:
    return RemoteUrlRefused(f"{shown} cannot be loaded: {reason}")
