"""hf:// repositories: a revision's commit and files, and the links that they are read from.

A branch may move between two requests, so a name is resolved to its commit once, and everything is read at that commit.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..errors import CheckpointIndexInvalid, RemoteUnsuitable, RemoteUrlRefused
from .settings import RemoteSettings
from .small_files import read_small
from .urls import RemoteUrl

DEFAULT_REVISION = "main"
MAX_ANSWER_BYTES = 64_000_000
_COMMIT = re.compile("[0-9a-f]{40}")
_FILE_URL = re.compile(r"hf://((?:[A-Za-z0-9._-]+/)?[A-Za-z0-9._-]+)@([0-9a-f]{40})/([^/?#]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRevision:
    """One commit of a repository, and the names of the files at its top."""

    repository: str
    commit: str
    names: tuple[str, ...]

    def file_url(self, name: str) -> str:
        """The URL under which the file is known; unlike that of the revision it never changes its meaning."""
        return f"hf://{self.repository}@{self.commit}/{quote(name, safe='')}"


def is_commit(revision: str) -> bool:
    """Whether a revision can never mean anything else."""
    return _COMMIT.fullmatch(revision) is not None


def file_link(url: str, settings: RemoteSettings) -> tuple[str, dict[str, str]]:
    """Where a HubRevision.file_url() is read, and the headers for that host alone. Raises RemoteUrlRefused."""
    found = _FILE_URL.fullmatch(url)
    if found is None:
        raise RemoteUrlRefused(f"{url} is not of the form hf://organisation/model@commit/file")
    return f"{settings.hub_endpoint}/{found[1]}/resolve/{found[2]}/{found[3]}", _headers(settings)


async def resolve_revision(url: RemoteUrl, settings: RemoteSettings) -> HubRevision:
    """Asks the hub. Raises CheckpointNotFound, RemoteDenied, RemoteUnsuitable, TransientFailure."""
    repository = f"{url.host}/{url.path}".rstrip("/")
    revision = url.revision or DEFAULT_REVISION
    link = f"{settings.hub_endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}"
    answer = _parsed(await read_small(link, _headers(settings), str(url), MAX_ANSWER_BYTES, settings), url)
    commit, siblings = answer.get("sha"), answer.get("siblings")
    if not isinstance(commit, str) or not is_commit(commit) or not isinstance(siblings, list):
        raise _unlike_a_hub(url)
    names = [file.get("rfilename") for file in siblings if isinstance(file, dict)]
    top = [name for name in names if isinstance(name, str) and "/" not in name]
    if not all(name.isprintable() and name not in ("", ".", "..") and "\\" not in name for name in top):
        raise CheckpointIndexInvalid(f"{url} lists file names that lead elsewhere; it is not loaded")
    return HubRevision(repository=repository, commit=commit, names=tuple(sorted(top)))


def _parsed(content: bytes, url: RemoteUrl) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _unlike_a_hub(url) from error
    if not isinstance(answer, dict):
        raise _unlike_a_hub(url)
    return answer


def _unlike_a_hub(url: RemoteUrl) -> RemoteUnsuitable:
    return RemoteUnsuitable(f"what answers about {url} is no model hub; check HF_ENDPOINT")


def _headers(settings: RemoteSettings) -> dict[str, str]:
    return {"Authorization": f"Bearer {settings.hub_token}"} if settings.hub_token else {}
