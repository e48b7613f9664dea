"""Asks a real tritonserver every call of the table and keeps its answers: `python -m tests.recordings.record`.

The server is one of the project's own, with the demo model loaded behind it; it is asked at its own ports. Takes some
seconds. Do it again where the table changes; the answers are those of Triton 2.51 and change for no other reason.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path

import tritonclient.grpc as triton_grpc

from serverless_triton.backend.model_repository import EngineLimits, add_model
from serverless_triton.cli.demo_model import ensure_demo_model
from serverless_triton.cli.local_cluster import LocalCluster
from tests.recordings.asking import Asker
from tests.recordings.calls import FILE, Answer, all_calls
from tests.recordings.models import add_bystanders, plain_config

DRAM_BYTES = 1 << 30


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = make_repository(Path(folder) / "models")
        with LocalCluster(Path(folder), repository, servers=1, dram_bytes=DRAM_BYTES) as cluster:
            heard = cluster.generate("m", "hi", max_tokens=1)
            if heard.errors:
                sys.exit(f"the demo model does not run: {heard.errors}")
            http, grpc_address = _triton_ports(cluster)
            with triton_grpc.InferenceServerClient(grpc_address) as client:
                client.load_model("plain")
            answers = asyncio.run(record(http, grpc_address))
    FILE.write_text(_lines(answers))
    print(f"{len(answers)} answers in {FILE}")


def make_repository(root: Path) -> Path:
    add_model(root, "m", ensure_demo_model(), limits=EngineLimits())
    plain = root / "plain"
    (plain / "1").mkdir(parents=True)
    (plain / "config.pbtxt").write_text(plain_config())
    shutil.copyfile(Path(__file__).with_name("plain_model.py"), plain / "1" / "model.py")
    add_bystanders(root)
    return root


def _triton_ports(cluster: LocalCluster) -> tuple[str, str]:
    """HTTP and gRPC address of the server behind the gateway."""
    arguments = Path(f"/proc/{cluster.pid('server-0.triton')}/cmdline").read_bytes().decode().split("\0")
    options = dict(argument.split("=", 1) for argument in arguments if argument.startswith("--") and "=" in argument)
    return f"127.0.0.1:{options['--http-port']}", f"127.0.0.1:{options['--grpc-port']}"


async def record(http: str, grpc_address: str) -> dict[str, Answer]:
    async with Asker(http, grpc_address) as asker:
        answers = {}
        for call in all_calls():
            print(call.name, flush=True)
            answers[call.name] = await asker.ask(call)
        return answers


def _lines(answers: dict[str, Answer]) -> str:
    """JSON with one line a call."""
    lines = [f"{json.dumps(name)}: {json.dumps(answer, sort_keys=True)}" for name, answer in answers.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
