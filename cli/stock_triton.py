"""The rival of the demo and the benchmarks: stock Triton, the usual Python model, a client that loads on demand."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serverless_triton.backend.processes import die_with_parent
from serverless_triton.backend.sentinel import remove_shared_memory
from serverless_triton.backend.supervisor import Run
from serverless_triton.backend.triton_install import (
    TritonInstallation,
    assemble_backend_directory,
    server_environment,
    stock_environment,
)
from serverless_triton.cli.cluster import free_ports

READY_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 120.0
UNLOAD_TIMEOUT_S = 30.0
POLL_S = 0.02
MODEL = "stock"


class StockTritonFailed(Exception):
    """The rival's server did not do its part; the message names its log."""


class StockTriton:
    """One stock tritonserver with one model, not loaded. A context manager; nothing of it is left afterwards.

    With `auto_complete` it runs with Triton's defaults; without, with `--disable-auto-complete-config`, as ours do.
    """

    def __init__(
        self, installation: TritonInstallation, checkpoint: Path, logs: Path, *, auto_complete: bool = True
    ) -> None:
        self._installation = installation
        self._checkpoint = checkpoint
        self._auto_complete = auto_complete
        self._log = logs / f"stock{'' if auto_complete else '-no-auto-complete'}.log"

    def __enter__(self) -> StockTriton:
        with ExitStack() as stack:
            self._run = stack.enter_context(Run.create())
            http_port, grpc_port = free_ports(2)
            stack.callback(remove_shared_memory, self._run.shm_prefix)
            self._start(self._command(http_port, grpc_port))
            stack.callback(self._end)
            self._client = triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")
            stack.callback(self._client.close)
            self._until(self._client.is_server_ready, READY_TIMEOUT_S, "the server is ready")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=UNLOAD_TIMEOUT_S)
        self._process.kill()
        self._process.wait()

    def _command(self, http_port: int, grpc_port: int) -> list[str]:
        backends = assemble_backend_directory(self._installation, self._run.directory / "backends")
        return [
            str(self._installation.server),
            f"--model-repository={self._make_repository()}",
            f"--backend-directory={backends.path}",
            "--model-control-mode=explicit",
            *([] if self._auto_complete else ["--disable-auto-complete-config"]),
            "--http-address=127.0.0.1",
            f"--http-port={http_port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={grpc_port}",
            "--allow-metrics=false",
            f"--backend-config=python,shm-region-prefix-name={self._run.shm_prefix}",
        ]

    def cold_start_s(self, prompt: str) -> float:
        """Seconds from asking for the load until the first token is there; the model is not running before."""
        self.unload()
        began_s = time.monotonic()
        self._client.load_model(MODEL, client_timeout=LOAD_TIMEOUT_S)
        self._first_token(prompt)
        return time.monotonic() - began_s

    def _first_token(self, prompt: str) -> None:
        text = triton_grpc.InferInput("text_input", [1], "BYTES")
        text.set_data_from_numpy(np.array([prompt.encode()], dtype=np.object_))
        count = triton_grpc.InferInput("max_tokens", [1], "INT32")
        count.set_data_from_numpy(np.array([1], dtype=np.int32))
        self._client.infer(MODEL, [text, count], client_timeout=LOAD_TIMEOUT_S)

    def unload(self) -> None:
        """Until nothing of the model is left in the server."""
        self._client.unload_model(MODEL)
        self._until(lambda: self._state() in ("UNAVAILABLE", ""), UNLOAD_TIMEOUT_S, "the model is unloaded")

    def _state(self) -> str:
        index = self._client.get_model_repository_index().models
        return next((str(model.state) for model in index if model.name == MODEL), "")

    def _make_repository(self) -> Path:
        model = self._run.directory / "models" / MODEL
        (model / "1").mkdir(parents=True)
        source = Path(__file__).parent / "stock_model"
        shutil.copyfile(source / "model.py", model / "1" / "model.py")
        checkpoint = f'parameters {{ key: "checkpoint" value {{ string_value: "{self._checkpoint}" }} }}\n'
        (model / "config.pbtxt").write_text((source / "config.pbtxt").read_text() + checkpoint)
        return model.parent

    def _start(self, command: list[str]) -> None:
        environment = server_environment(self._installation, stock_environment(self._installation))
        self._log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, preexec_fn=lambda: die_with_parent(parent)
            )

    def _until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not _holds(condition):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise StockTritonFailed(f"not within {timeout_s:.0f} s: {what}; see {self._log}")
            time.sleep(POLL_S)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return bool(condition())
    except InferenceServerException:
        return False  # the server does not listen yet
