"""The small files of a remote model: its configuration and tokenizer, fetched beside a reference to its weights.

Only files of known names are fetched, none larger than MAX_FILE_BYTES; nothing of a model's own code.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from ..checkpoint import Checkpoint
from ..errors import CheckpointNotFound, CheckpointUnwritable, RemoteDenied
from .objects import ObjectOpener
from .opener import RemoteOpener
from .patience import Patience, asked_patiently
from .settings import RemoteSettings

FILE_NAMES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
MAX_FILE_BYTES = 64_000_000


def fetch_model_files(url: str, directory: Path, settings: RemoteSettings | None = None) -> Checkpoint:
    """Fetches what lies beside the weights at `url` into `directory` and returns the checkpoint, still remote.

    The path of an hf:// checkpoint is then that of its commit, so that files and weights stay of one version. Raises
    CheckpointError, RemoteUnavailable.
    """
    settings = settings or RemoteSettings.from_environment()
    checkpoint = RemoteOpener(settings, None).open(url)
    base = checkpoint.files[0].real_path.rpartition("/")[0] if checkpoint.is_remote else ""
    if base:
        asyncio.run(_fetch_all(base, directory, settings))
    return replace(checkpoint, path=base) if base.startswith("hf://") else checkpoint


async def _fetch_all(base: str, directory: Path, settings: RemoteSettings) -> None:
    objects, patience = ObjectOpener(settings), Patience(settings.open_patience_s)

    async def fetch(name: str) -> None:
        remote = objects.object_at(f"{base}/{name}")
        try:
            content = await asked_patiently(lambda: remote.read_whole(MAX_FILE_BYTES), remote.url, patience)
        except (CheckpointNotFound, RemoteDenied):
            return  # few models have all of them; a bucket that may not be listed denies what is not there
        _write(directory / name, content)

    await asyncio.gather(*map(fetch, FILE_NAMES))


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise CheckpointUnwritable(
            f"cannot write {path}: {error.strerror}; check the permissions and the space"
        ) from error
