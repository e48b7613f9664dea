"""What `serverless-triton status` says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

from click.testing import CliRunner

from serverless_triton.cli.status import command, lines
from serverless_triton.scheduler.admission import StreamId
from serverless_triton.scheduler.status import cluster_status
from tests.unit.scheduler.worlds import model, world


@contextmanager
def gateway(status: int, body: Any) -> Iterator[str]:
    """A server that gives every question this answer, to whoever shows the key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.headers["Authorization"] == "Bearer k" else 401)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


async def told() -> dict[str, Any]:
    w = world("s0", "s1", models=(model("a"),))
    await w.loop.admit(StreamId("x"), "a", timeout_s=1.0)
    w.loop.cluster.servers[next(iter(w.loop.cluster.servers))].in_dram = frozenset({"/models/a"})
    return json.loads(json.dumps(cluster_status(w.loop)))


async def test_servers_tiers_replicas_queues_and_calibration_are_shown() -> None:
    text = "\n".join(lines(await told()))
    for part in (
        "2 of 2 servers take starts",
        "waiting: nobody",
        "in DRAM: /models/a",
        "load queue: ssd 0 GB",
        "ready",
    ):
        assert part in text


async def test_every_learned_figure_is_shown_with_its_error() -> None:
    body = await told()
    rows = [line for line in lines(body) if line.split()[:1] in (["dram"], ["ssd"], ["remote"])]
    assert len(rows) == 3 * len(body["servers"])
    assert all(row.count("±") == 3 for row in rows)


async def test_the_gateways_answer_is_given_whole_to_programs() -> None:
    body = await told()
    with gateway(200, body) as url:
        result = CliRunner().invoke(command, ["--url", url, "--key", "k", "--json"])
    assert json.loads(result.output) == body


def test_without_the_key_it_says_what_to_give() -> None:
    with gateway(200, {}) as url:
        result = CliRunner().invoke(command, ["--url", url])
    assert result.exit_code == 1
    assert "give an admin's --key" in result.output


def test_where_no_gateway_is_it_says_so() -> None:
    result = CliRunner().invoke(command, ["--url", "http://127.0.0.1:1"])
    assert result.exit_code == 1
    assert "does not answer" in result.output
