"""How the scheduler's process runs. In processes of their own: what is set there is set for good."""

from __future__ import annotations

import os
import subprocess
import sys

from serverless_triton.scheduler.runtime import GRPC_EXPERIMENTS

# How often threads of the EventEngine woke while 200 messages went from a server to a client in one process.
SERVE_AND_CALL = """
import asyncio, pathlib
from serverless_triton.scheduler.runtime import poll_in_one_thread

poll_in_one_thread()
import grpc

def wakes(thread):
    switches = thread.joinpath("status").read_text().partition("\\nvoluntary_ctxt_switches:")[2]
    return int(switches.split()[0]) if "event_engine" in thread.joinpath("comm").read_text() else 0

async def stream(request, context):
    for _ in range(200):
        await context.write(b"x")
        await asyncio.sleep(0.001)

async def main():
    server = grpc.aio.server()
    method = grpc.unary_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"stream": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        async for _ in channel.unary_stream("/test/stream")(b""):
            pass
        print(sum(map(wakes, pathlib.Path("/proc/self/task").iterdir())))
    await server.stop(None)

asyncio.run(main())
"""

FREEZE = """
import gc
from serverless_triton.scheduler.runtime import spare_lasting_objects

kept = [[] for _ in range(10_000)]
spare_lasting_objects()
new = []
print(gc.get_freeze_count() > len(kept), any(one is kept for one in gc.get_objects()), new in gc.get_objects())
"""


def said(program: str, **environment: str) -> str:
    """What it prints."""
    inherited = {name: value for name, value in os.environ.items() if name != GRPC_EXPERIMENTS}
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return finished.stdout


def test_messages_wake_no_threads_beside_the_one_that_waits_for_completions() -> None:
    assert int(said(SERVE_AND_CALL)) < 200


def test_what_the_environment_says_about_grpc_stays() -> None:
    assert int(said(SERVE_AND_CALL, GRPC_EXPERIMENTS="event_engine_client,event_engine_listener")) > 400


def test_no_collection_looks_at_what_was_there_at_the_start() -> None:
    assert said(FREEZE).split() == ["True", "False", "True"]
