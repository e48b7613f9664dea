"""A real Triton, found or installed, runs a backend of ours in the stub's own Python."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from serverless_triton.backend.triton_install import (
    TritonInstallation,
    assemble_backend_directory,
    find_triton,
    server_environment,
    stock_environment,
)

SHM_PREFIX = f"test_triton_install_{os.getpid()}_"

# Echoes what arrives, and says what the stub's Python is: importing ssl fails where the wrong libpython is loaded.
BACKEND = """
import ssl, sys
import numpy as np
import triton_python_backend_utils as pb_utils
from serverless_triton.backend import messages

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        about = np.array([np.__version__.encode(), messages.__file__.encode()], dtype=np.object_)
        echoed = [
            pb_utils.Tensor(name.replace("in_", "out_"), pb_utils.get_input_tensor_by_name(request, name).as_numpy())
            for name in ("in_INT32", "in_BYTES", "in_BOOL", "in_FP32")
        ]
        return pb_utils.InferenceResponse([pb_utils.Tensor("about", about), *echoed])
"""
VALUES = {
    "INT32": np.array([5, 6, 7, 8], dtype=np.int32),
    "BYTES": np.array([b"caf\xc3\xa9", b"", b"x" * 300, b"last"], dtype=np.object_),
    "BOOL": np.array([True, False, False, True]),
    "FP32": np.array([1.5, -2.0, 3e9, 0.0], dtype=np.float32),
}


@pytest.fixture(scope="module")
def installation() -> TritonInstallation:
    return find_triton()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_model(repository: Path) -> None:
    tensors = {"INT32": "TYPE_INT32", "BYTES": "TYPE_STRING", "BOOL": "TYPE_BOOL", "FP32": "TYPE_FP32"}
    inputs = [f'{{ name: "in_{name}" data_type: {kind} dims: [-1] }}' for name, kind in tensors.items()]
    outputs = [f'{{ name: "out_{name}" data_type: {kind} dims: [-1] }}' for name, kind in tensors.items()]
    outputs.append('{ name: "about" data_type: TYPE_STRING dims: [-1] }')
    (repository / "echo" / "1").mkdir(parents=True)
    (repository / "echo" / "config.pbtxt").write_text(
        'backend: "serverless"\nmax_batch_size: 0\ninstance_group [{ kind: KIND_CPU count: 1 }]\n'
        f"input [{', '.join(inputs)}]\noutput [{', '.join(outputs)}]\n"
    )


@pytest.fixture
def client(installation: TritonInstallation, tmp_path: Path) -> Iterator[triton.InferenceServerClient]:
    write_model(tmp_path / "repository")
    backends = assemble_backend_directory(installation, tmp_path / "B").path
    (backends / "serverless" / "model.py").write_text(BACKEND)
    port = free_port()
    command = [
        installation.server,
        f"--model-repository={tmp_path / 'repository'}",
        f"--backend-directory={backends}",
        # Read from the Python backend's settings, for Python-based backends of any name.
        f"--backend-config=python,shm-region-prefix-name={SHM_PREFIX}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        "--allow-http=false",
        "--allow-metrics=false",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
    ]
    log = tmp_path / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, env=server_environment(installation), stdout=output, stderr=output)
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as connected:
            wait_until_ready(connected, server, log)
            yield connected
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
        for leftover in Path("/dev/shm").glob(f"{SHM_PREFIX}*"):
            leftover.unlink(missing_ok=True)


def wait_until_ready(client: triton.InferenceServerClient, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            if client.is_server_ready():
                return
        except InferenceServerException:
            pass  # not listening yet
        time.sleep(0.05)
    pytest.fail(log.read_text()[-3000:])


def make_input(name: str, value: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(f"in_{name}", [value.size], name)
    tensor.set_data_from_numpy(value)
    return tensor


def test_every_dtype_comes_back_whole_through_the_stub(client: triton.InferenceServerClient, tmp_path: Path):
    client.load_model("echo")

    answer = client.infer("echo", [make_input(name, value) for name, value in VALUES.items()])

    for name, value in VALUES.items():
        assert answer.as_numpy(f"out_{name}").tolist() == value.tolist()
    _numpy_version, messages_file = (text.decode() for text in answer.as_numpy("about"))
    assert Path(messages_file).is_relative_to(tmp_path / "B" / "serverless")


def test_its_shared_memory_has_the_prefix_given(client: triton.InferenceServerClient):
    client.load_model("echo")
    assert [path for path in Path("/dev/shm").iterdir() if path.name.startswith(SHM_PREFIX)]


def test_the_usual_python_model_gets_torch_and_keeps_numpy_1(installation: TritonInstallation):
    environment = stock_environment(installation)
    if environment is None:
        pytest.skip("this Triton ships its own Python")
    script = (
        "import numpy, torch, transformers as t; t.AutoModelForCausalLM; print(numpy.__version__, torch.__version__)"
    )
    variables = server_environment(installation, environment)
    finished = subprocess.run(
        ["python3", "-c", script], env=variables, capture_output=True, text=True, check=True, timeout=120
    )
    assert finished.stdout.startswith("1.26.4 2.")
