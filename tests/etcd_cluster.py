"""Real etcd members on this machine, killed, stopped and brought back as tests like."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from serverless_triton.cli.cluster import free_ports
from tests.etcd_install import find_etcd

READY_S = 30.0
# Milliseconds. etcd's own are 100 and 1000, for networks; tests wait for elections.
HEARTBEAT_MS, ELECTION_MS = 50, 500


@dataclass
class Member:
    name: str
    command: Sequence[str]
    log: Path
    address: str
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ask(self, path: str) -> dict[str, object] | None:
        """etcd's own JSON over HTTP; None where it does not answer."""
        request = urllib.request.Request(f"http://{self.address}{path}", data=b"{}")
        try:
            with urllib.request.urlopen(request, timeout=0.5) as answer:
                told: dict[str, object] = json.load(answer)
                return told
        except OSError:
            return None


class EtcdCluster:
    """A context manager: leaving it kills every member."""

    def __init__(self, folder: Path, members: int = 3) -> None:
        ports = free_ports(2 * members)
        peers = {f"m{n}": f"http://127.0.0.1:{ports[2 * n + 1]}" for n in range(members)}
        self.members = [
            Member(
                name=f"m{n}",
                command=_command(folder, f"m{n}", ports[2 * n], peers),
                log=folder / f"m{n}.log",
                address=f"127.0.0.1:{ports[2 * n]}",
            )
            for n in range(members)
        ]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.address for member in self.members)

    def __enter__(self) -> EtcdCluster:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def start(self) -> None:
        """All that do not run; returns when there is a leader."""
        for member in self.members:
            if member.process is None:
                member.start()
        self.leader()

    def kill(self) -> None:
        for member in self.members:
            member.kill()

    def leader(self) -> Member:
        """Whom the members follow."""
        ends_s = time.monotonic() + READY_S
        while time.monotonic() < ends_s:
            for member in self.members:
                told = member.ask("/v3/maintenance/status") if member.process is not None else None
                header = {} if told is None else told["header"]
                assert isinstance(header, dict)
                if told is not None and told.get("leader", "0") == header["member_id"]:
                    return member
            time.sleep(0.05)
        logs = "\n".join(member.log.read_text()[-500:] for member in self.members)
        raise AssertionError(f"etcd has no leader after {READY_S:.0f} s: {logs}")


def _command(folder: Path, name: str, port: int, peers: dict[str, str]) -> list[str]:
    client = f"http://127.0.0.1:{port}"
    return [
        str(find_etcd()),
        *("--name", name, "--data-dir", str(folder / name)),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peers[name], "--initial-advertise-peer-urls", peers[name]),
        *("--initial-cluster", ",".join(f"{peer}={url}" for peer, url in peers.items())),
        *("--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS)),
        *("--logger", "zap", "--log-level", "warn"),
    ]
