"""A real cluster under test: `serverless-triton up` as a child, and unmodified clients against it."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import yaml

from serverless_triton.cli.cluster import free_ports

START_TIMEOUT_S = 120.0
POLL_S = 0.05


@dataclass
class Heard:
    """What one client of one stream heard, message by message."""

    texts: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    stream_id: str | None = None
    output_ids: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class GrpcStream:
    """One request on one client stream of tritonclient, read as it comes."""

    def __init__(self, address: str, model: str, prompt: str, **sampling: Any) -> None:
        self.heard = Heard()
        self.client = triton_grpc.InferenceServerClient(address)
        self._queue: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(callback=lambda result, error: self._queue.put((result, error)))
        self.client.async_stream_infer(
            model,
            generation_inputs(prompt, **sampling),
            request_id="of the client's own",
            outputs=[triton_grpc.InferRequestedOutput(name) for name in ("text_output", "output_ids", "finish_reason")],
            enable_empty_final_response=True,
        )

    def next(self, timeout_s: float = 60.0) -> bool:
        """Hear one more message; False when it was the last."""
        result, error = self._queue.get(timeout=timeout_s)
        if error is not None:
            self.heard.errors.append(str(error))
            return False
        return self._take(result)

    def _take(self, result: Any) -> bool:
        response = result.get_response()
        self.heard.stream_id = response.parameters["stream_id"].string_param
        text = result.as_numpy("text_output")
        if text is not None and text.size:
            self.heard.texts.append(text[0].decode())
            self.heard.times_s.append(time.monotonic())
            self.heard.output_ids += [int(i) for i in result.as_numpy("output_ids")]
        reason = result.as_numpy("finish_reason")
        if reason is not None and reason.size and reason[0]:
            self.heard.finish_reason = reason[0].decode()
        return not response.parameters["triton_final_response"].bool_param

    def read(self, messages: int) -> Heard:
        """Hear so many messages."""
        for _ in range(messages):
            self.next()
        return self.heard

    def rest(self) -> Heard:
        """Hear everything to the end."""
        while self.next():
            pass
        self.close()
        return self.heard

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()

    def cancel(self) -> None:
        self.client.stop_stream(cancel_requests=True)
        self.client.close()


def generation_inputs(prompt: str, *, stream: bool = True, **sampling: Any) -> list[Any]:
    """vllm_backend's tensors for tritonclient.grpc."""
    text = triton_grpc.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([prompt.encode()], dtype=np.object_))
    streaming = triton_grpc.InferInput("stream", [1], "BOOL")
    streaming.set_data_from_numpy(np.array([stream]))
    parameters = triton_grpc.InferInput("sampling_parameters", [1], "BYTES")
    parameters.set_data_from_numpy(np.array([json.dumps(sampling).encode()], dtype=np.object_))
    reason = triton_grpc.InferInput("return_finish_reason", [1], "BOOL")
    reason.set_data_from_numpy(np.array([True]))
    return [text, streaming, parameters, reason]


class Cluster:
    """One `up`. Use as a context manager: leaving it ends every process by SIGTERM to the one that was started."""

    def __init__(self, folder: Path, repository: Path, *, servers: int = 2, **node: int) -> None:
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.logs = folder / "logs"
        self._config = folder / "cluster.yaml"
        ports = {"http_port": self.http_port, "grpc_port": self.grpc_port, "metrics_port": self.metrics_port}
        config = {"model_repository": str(repository), "servers": servers, "gateway": ports, "node": node}
        self._config.write_text(yaml.safe_dump(config))
        self._servers = servers

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    def __enter__(self) -> Cluster:
        command = [sys.executable, "-m", "serverless_triton.cli"]
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "up", "--config", str(self._config), "--logs", str(self.logs)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.until(lambda: self.servers_up() == self._servers, "every server is up", START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The supervisor's exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def stream(self, model: str, prompt: str, **sampling: Any) -> GrpcStream:
        return GrpcStream(self.grpc, model, prompt, **sampling)

    def generate(self, model: str, prompt: str, **sampling: Any) -> Heard:
        return self.stream(model, prompt, **sampling).rest()

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.get("/v2/cluster/status")
        return answer

    def servers_up(self) -> int:
        try:
            servers = self.status()["servers"]
        except (OSError, ValueError, http.client.HTTPException):
            return 0
        return sum(server["triton"] == "up" and server["agent"] == "up" for server in servers)

    def replicas(self, model: str | None = None) -> list[dict[str, Any]]:
        """Each with its server's name."""
        return [
            {**replica, "server": server["name"]}
            for server in self.status()["servers"]
            for replica in server["replicas"]
            if model in (None, replica["model"])
        ]

    def serving(self, model: str) -> dict[str, Any]:
        """The replica with the most streams."""
        return max(self.replicas(model), key=lambda replica: replica["streams"])

    def pid(self, name: str) -> int:
        """Of a supervised process, such as `server-0.triton`."""
        run = self.run_directory()
        return int((run / f"{name}.pid").read_text())

    def run_directory(self) -> Path:
        return Path(self._sentinel_arguments()[2])

    def shm_prefix(self) -> str:
        return self._sentinel_arguments()[1]

    def run_id(self) -> str:
        return self._sentinel_arguments()[0]

    def _sentinel_arguments(self) -> list[str]:
        """Run id, /dev/shm prefix, run directory."""
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"serverless_triton.backend.sentinel" in command:
                return [part.decode() for part in command[-4:-1]]
        raise AssertionError("the supervisor has no sentinel")

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        assert pid > 1
        os.kill(pid, number)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"the cluster ended; see {self.logs}"
            assert time.monotonic() < deadline_s, f"not within {timeout_s:.0f} s: {what}"
            time.sleep(POLL_S)


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """The results of calls made at the same time."""
    results: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        results[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def lines_of(file: Path, mark: str) -> Iterator[str]:
    return (line for line in file.read_text().splitlines() if mark in line)
