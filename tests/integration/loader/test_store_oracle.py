"""Any valid file through a real store reads as the official reader reads it."""

import tempfile
from pathlib import Path

import pytest

from serverless_triton.loader import Store

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, example, given, settings
from safetensors.torch import load_file as official_load_file

from tests.unit.loader.safetensors_files import assert_same, every_dtype, safetensors_files


# One store for all files: they come and go in it.
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(content=every_dtype())
@given(content=safetensors_files())
def test_tensors_of_an_attachment_are_those_of_the_official_reader(store: Store, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        path.write_bytes(content)
        attachment = store.attach(path)
        assert_same(attachment.tensors, official_load_file(path))
        store.release(attachment)
