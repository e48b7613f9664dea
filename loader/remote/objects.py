"""One remote file: its size and version, and ranges of its bytes, by obstore.

Retrying is left to the caller, who knows how long to be patient. An object may be used by one event loop at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import obstore
from obstore.exceptions import BaseError
from obstore.store import HTTPStore, S3Store

from ..errors import CheckpointChanged, CheckpointUnreadable, RemoteUnsuitable
from .failures import TransientFailure, translated
from .hub import file_link
from .settings import RemoteSettings
from .small_files import read_small
from .urls import parse_url

if TYPE_CHECKING:
    from obstore.store import ClientConfig

# Between few calls into Python and little that is lost when a connection breaks; the fastest of 64 KiB, 1 MiB, 8 MiB.
STREAM_BYTES = 1024 * 1024
PROBE_BYTES = 8
NO_RETRIES: Any = {"max_retries": 0, "retry_timeout": timedelta(0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A remote file's size, and what tells its content from another's."""

    bytes: int
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPlace:
    """A link and the headers for its host alone; a store of its own, because obstore would rewrite its path."""

    link: str
    headers: dict[str, str] = field(repr=False)
    store: HTTPStore
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlace:
    """A key of a bucket."""

    store: S3Store
    key: str


class RemoteObject:
    """The file at `url`, which is safe to be shown."""

    def __init__(self, url: str, place: HttpPlace | BucketPlace, settings: RemoteSettings) -> None:
        self.url = url
        self._place = place
        self._settings = settings

    async def probe(self) -> Version:
        """Asks for the first bytes: unlike HEAD, that also works with links that are signed for GET.

        Raises CheckpointError, TransientFailure.
        """
        result = await self._get(0, PROBE_BYTES)
        return self._version(result)

    async def read(self, begin: int, end: int, version: Version) -> AsyncIterator[Any]:
        """The bytes from `begin` to `end` as buffers, all of that version.

        Raises CheckpointChanged, RemoteUnsuitable, and whatever probe() does; what was yielded until then is good.
        """
        result = await self._get(begin, end)
        if self._version(result) != version:
            raise CheckpointChanged(f"{self.url} changed while it was being loaded; load it again once it is complete")
        left = end - begin
        try:
            async for buffer in result.stream(min_chunk_size=STREAM_BYTES):
                left -= len(buffer)
                if left < 0:
                    raise TransientFailure("it sent more than was asked for")
                yield buffer
        except BaseError as error:
            raise translated(error, self.url) from error
        if left:
            raise TransientFailure("it sent less than was asked for")

    async def read_whole(self, limit_bytes: int) -> bytes:
        """A small file. Raises CheckpointUnreadable past the limit, and whatever read() does."""
        if isinstance(self._place, HttpPlace):
            return await read_small(self._place.link, self._place.headers, self.url, limit_bytes, self._settings)
        version = await self.probe()
        if version.bytes > limit_bytes:
            raise CheckpointUnreadable(
                f"{self.url} has {version.bytes} bytes; at most {limit_bytes} are expected there"
            )
        return b"".join([bytes(buffer) async for buffer in self.read(0, version.bytes, version)])

    async def _get(self, begin: int, end: int) -> obstore.GetResult:
        try:
            return await obstore.get_async(self._place.store, self._place.key, options={"range": (begin, end)})
        except (BaseError, FileNotFoundError) as error:
            raise translated(error, self.url) from error

    def _version(self, result: obstore.GetResult) -> Version:
        """A strong ETag alone, since the servers behind one name may differ in the date; else the date with it."""
        etag, modified = result.meta["e_tag"] or "", result.meta["last_modified"]
        if etag and not etag.startswith("W/"):
            return Version(bytes=result.meta["size"], etag=etag)
        if not etag and modified.timestamp() == 0:
            raise RemoteUnsuitable(
                f"the server of {self.url} sends neither ETag nor Last-Modified, so that a change during a load would "
                "go unnoticed; use one that does, or download the file"
            )
        return Version(bytes=result.meta["size"], etag=f"{etag} {modified.isoformat()}".strip())


class ObjectOpener:
    """Makes RemoteObjects of URLs with one set of settings."""

    def __init__(self, settings: RemoteSettings) -> None:
        self._settings = settings
        self._buckets: dict[str, S3Store] = {}

    def object_at(self, url: str) -> RemoteObject:
        """The file at an https://, s3:// or hf://...@commit/file URL. Raises RemoteUrlRefused."""
        return RemoteObject(url, self._place_of(url), self._settings)

    def _place_of(self, url: str) -> HttpPlace | BucketPlace:
        if url.startswith("hf://"):
            return self._http(*file_link(url, self._settings))
        parsed = parse_url(url, allow_http=self._settings.allow_http)
        if parsed.scheme == "s3":
            return BucketPlace(store=self._bucket(parsed.host), key=unquote(parsed.path))
        return self._http(url, {})

    def _http(self, link: str, headers: dict[str, str]) -> HttpPlace:
        options = self._options(allow_http=link.startswith("http://"))
        if headers:
            options["default_headers"] = headers
        store = HTTPStore(link, client_options=options, retry_config=NO_RETRIES)
        return HttpPlace(link=link, headers=headers, store=store)

    def _bucket(self, name: str) -> S3Store:
        if name not in self._buckets:
            # http:// only where the AWS_ENDPOINT_URL of the store's own environment says so.
            options = self._options(allow_http=True)
            self._buckets[name] = S3Store(name, client_options=options, retry_config=NO_RETRIES)
        return self._buckets[name]

    def _options(self, *, allow_http: bool) -> ClientConfig:
        return {
            "allow_http": allow_http,
            "connect_timeout": timedelta(seconds=self._settings.connect_timeout_s),
            "read_timeout": timedelta(seconds=self._settings.stall_timeout_s),
            "timeout": timedelta(seconds=self._settings.request_timeout_s),
            "user_agent": "serverless-triton",
        }
