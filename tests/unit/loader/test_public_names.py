import subprocess
import sys

import pytest

from serverless_triton import loader

PUBLIC_NAMES = {
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
}


def test_public_names_are_these_and_exist() -> None:
    assert set(loader.__all__) == PUBLIC_NAMES
    assert all(getattr(loader, name).__name__ == name for name in PUBLIC_NAMES)


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_fille"):
        _ = loader.load_fille


@pytest.mark.parametrize("module", ["serverless_triton.loader.daemon", "serverless_triton.loader.client"])
def test_daemon_and_client_import_neither_torch_nor_numpy(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy', 'asyncio'}} & sys.modules.keys()))"

    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
