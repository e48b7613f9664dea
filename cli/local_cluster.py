"""A cluster as a child process: `serverless-triton up`, watched through its gateway."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from serverless_triton.backend.node_secret import Metadata, NodeSecret
from serverless_triton.backend.processes import die_with_parent
from serverless_triton.cli.cluster import SECRET_FILE, free_ports
from serverless_triton.cli.stream_client import GrpcStream, Heard

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05


class ClusterEnded(Exception):
    """The child ended, or what was waited for did not happen."""


class LocalCluster:
    """One `up`. Use as a context manager: leaving it ends every process by SIGTERM to the one that was started."""

    def __init__(
        self,
        folder: Path,
        repository: Path,
        *,
        servers: int = 2,
        logs: Path | None = None,
        relay: Mapping[str, float] | None = None,
        control: Mapping[str, float] | None = None,
        node_tls: Mapping[str, str] | None = None,
        state: Mapping[str, Any] | None = None,
        **node: int | str,
    ) -> None:
        """`node` are budgets of each node, as `NodeBudgets` names them; `relay` limits, as `RelayLimits` does, and
        `control` what `ControlConfig` does, `node_tls` the files of a `NodeTLS`, `state` a
        `StateConfig`.
        """
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.logs = logs or folder / "logs"
        self.repository = repository
        self._config = folder / "cluster.yaml"
        ports = {"http_port": self.http_port, "grpc_port": self.grpc_port, "metrics_port": self.metrics_port}
        config = {"model_repository": str(repository), "servers": servers, "node": node}
        config["gateway"] = {**ports, "relay": dict(relay or {})}
        config["control"] = dict(control or {})
        config["state"] = dict(state or {})
        config["node_tls"] = None if node_tls is None else dict(node_tls)
        self._config.write_text(yaml.safe_dump(config))
        self._servers = servers

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    def __enter__(self) -> LocalCluster:
        command = [sys.executable, "-m", "serverless_triton.cli"]
        parent = os.getpid()
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "up", "--config", str(self._config), "--logs", str(self.logs)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),
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
        return self.process.wait(timeout=STOP_TIMEOUT_S)

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
        return sum(server["takes_starts"] for server in servers)

    def replicas(self, model: str | None = None) -> list[dict[str, Any]]:
        """Those of one model, or all, each with its server's name."""
        return [
            {**replica, "server": server["name"]}
            for server in self.status()["servers"]
            for replica in server["replicas"]
            if model in (None, replica["model"])
        ]

    def parked(self, model: str | None = None) -> list[dict[str, Any]]:
        """Stubs that wait for an engine, of one model, or all, each with its server's name."""
        return [
            {**stub, "server": server["name"]}
            for server in self.status()["servers"]
            for stub in server["parked"]
            if model in (None, stub["model"])
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

    def triton_address(self, number: int = 0) -> str:
        """A Triton server's own gRPC address, behind the gateway."""
        return self._address("triton", number)

    def agent_address(self, number: int = 0) -> str:
        """Of a server's node agent."""
        return self._address("agent", number)

    def triton_headers(self) -> dict[str, str]:
        """What a Triton server wants to be shown by gRPC clients."""
        return dict(self._secret().triton_metadata)

    def triton_secret(self) -> str:
        """The value of that header, which it wants over HTTP too."""
        return self._secret().for_triton

    def agent_metadata(self) -> Metadata:
        """What a node agent wants to be shown."""
        return self._secret().agent_metadata

    def _secret(self) -> NodeSecret:
        return NodeSecret.read(self.run_directory() / SECRET_FILE)

    def _address(self, part: str, number: int) -> str:
        scheduler = yaml.safe_load((self.run_directory() / "scheduler.yaml").read_text())
        return str(scheduler["servers"][number][part])

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
        raise ClusterEnded("the supervisor has no sentinel")

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """The processes of this cluster are named by `status` and `pid`."""
        if pid <= 1:
            raise ClusterEnded(f"no such process in this cluster: {pid}")
        os.kill(pid, number)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                raise ClusterEnded(f"the cluster ended; see {self.logs}")
            if time.monotonic() > deadline_s:
                raise ClusterEnded(f"not within {timeout_s:.0f} s: {what}; see {self.logs}")
            time.sleep(POLL_S)
