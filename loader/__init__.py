"""Fast checkpoint loading: safetensors files into memory that processes of one node share.

Names are imported on first use, so that the store daemon, which lives in this package, starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attachment import Attachment
    from .checkpoint import Checkpoint
    from .client import Store
    from .errors import (
        BudgetTooLarge,
        CheckpointChanged,
        CheckpointCorrupted,
        CheckpointError,
        CheckpointExists,
        CheckpointIndexInvalid,
        CheckpointNotFound,
        CheckpointTruncated,
        CheckpointUnreadable,
        CheckpointUnwritable,
        ChunkHashesInvalid,
        ChunkHashesMissing,
        DeviceError,
        DeviceOutOfMemory,
        DeviceUnavailable,
        EngineUnavailable,
        HostNotConfigurable,
        ImageLeased,
        ImagePinned,
        LoaderError,
        NotSafetensors,
        PagesUnavailable,
        ProcessUnwatchable,
        RemoteDenied,
        RemoteUnavailable,
        RemoteUnsuitable,
        RemoteUrlRefused,
        SliceInvalid,
        SocketUnusable,
        StoreCancelled,
        StoreError,
        StoreFull,
        StoreProtocolError,
        StoreTimeout,
        StoreUnavailable,
        TensorNotFound,
        TooManyClients,
        UnsafeCheckpoint,
        UnsupportedDtype,
        UserRefused,
    )
    from .integrity import IntegrityReport, hash_checkpoint, verify_checkpoint
    from .receipts import Estimate, LoadReceipt
    from .remote.model_files import fetch_model_files
    from .repack import RepackReport, repack_checkpoint
    from .slices import TensorSlice, load_slices, take_slices
    from .standalone import load_file
    from .store_status import ImageStatus, StoreStatus

_HOMES = {
    "fetch_model_files": "remote.model_files",
    "load_file": "standalone",
    "TensorSlice": "slices",
    "load_slices": "slices",
    "take_slices": "slices",
    "Store": "client",
    "Attachment": "attachment",
    "Checkpoint": "checkpoint",
    "LoadReceipt": "receipts",
    "StoreStatus": "store_status",
    "ImageStatus": "store_status",
    "IntegrityReport": "integrity",
    "hash_checkpoint": "integrity",
    "verify_checkpoint": "integrity",
    "RepackReport": "repack",
    "repack_checkpoint": "repack",
    "Estimate": "receipts",
}

__all__ = [
    "Attachment",
    "BudgetTooLarge",
    "Checkpoint",
    "CheckpointChanged",
    "CheckpointCorrupted",
    "CheckpointError",
    "CheckpointExists",
    "CheckpointIndexInvalid",
    "CheckpointNotFound",
    "CheckpointTruncated",
    "CheckpointUnreadable",
    "CheckpointUnwritable",
    "ChunkHashesInvalid",
    "ChunkHashesMissing",
    "DeviceError",
    "DeviceOutOfMemory",
    "DeviceUnavailable",
    "EngineUnavailable",
    "Estimate",
    "HostNotConfigurable",
    "ImageLeased",
    "ImagePinned",
    "ImageStatus",
    "IntegrityReport",
    "LoadReceipt",
    "LoaderError",
    "NotSafetensors",
    "PagesUnavailable",
    "ProcessUnwatchable",
    "RemoteDenied",
    "RemoteUnavailable",
    "RemoteUnsuitable",
    "RemoteUrlRefused",
    "RepackReport",
    "SliceInvalid",
    "SocketUnusable",
    "Store",
    "StoreCancelled",
    "StoreError",
    "StoreFull",
    "StoreProtocolError",
    "StoreStatus",
    "StoreTimeout",
    "StoreUnavailable",
    "TensorNotFound",
    "TensorSlice",
    "TooManyClients",
    "UnsafeCheckpoint",
    "UnsupportedDtype",
    "UserRefused",
    "fetch_model_files",
    "hash_checkpoint",
    "load_file",
    "load_slices",
    "repack_checkpoint",
    "take_slices",
    "verify_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
