"""`serverless-triton status`: servers, tiers, replicas, queues and calibration, as the gateway tells them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

PATH = "/v2/cluster/status"
TIMEOUT_S = 10.0


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The gateway's HTTP address.")
@click.option("--key", envvar="SERVERLESS_TRITON_KEY", help="An admin's key, where the gateway wants one.")
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def command(url: str, key: str | None, as_json: bool) -> None:
    """Show servers, tiers, replicas, queues and what was learned of starts, each figure with its standard error."""
    status = _ask(url.rstrip("/") + PATH, key)
    click.echo(json.dumps(status, indent=2) if as_json else "\n".join(lines(status)))


def _ask(url: str, key: str | None) -> Mapping[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise click.ClickException(f"{url} is no HTTP address; give --url http://HOST:PORT")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            status: Mapping[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        error.close()
        advice = "; give an admin's --key" if error.code in (401, 403) else ""
        raise click.ClickException(f"{url}: {error.code} {error.reason}{advice}") from error
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{url} does not answer: {error}; is that a gateway's --url?") from error
    return status


def lines(status: Mapping[str, Any]) -> Iterator[str]:
    """For people."""
    servers = status["servers"]
    up = sum(bool(server["takes_starts"]) for server in servers)
    yield f"{up} of {len(servers)} servers take starts; epoch {status['epoch']}"
    waiting = ", ".join(f"{model} {count}" for model, count in sorted(status["waiting"].items()))
    yield f"waiting: {waiting or 'nobody'}"
    for server in servers:
        yield ""
        yield from _server(server)


def _server(server: Mapping[str, Any]) -> Iterator[str]:
    state = "takes starts" if server["takes_starts"] else "takes no starts"
    yield (
        f"{server['name']}: {state}; triton {server['triton']}, agent {server['agent']}, workers {server['workers']}; "
        f"device {_gb(server['device_memory_bytes'])}, DRAM {_gb(server['dram_bytes'])}"
    )
    yield f"  in DRAM: {_names(server['in_dram'])}"
    if server["on_ssd"]:
        yield f"  copies on SSD: {_names(server['on_ssd'])}"
    yield f"  load queue: {', '.join(f'{tier} {_gb(size)}' for tier, size in server['queued_bytes'].items())}"
    parked = [(stub["id"], stub["model"], "parked", "", "", "") for stub in server["parked"]]
    running = [_replica(replica) for replica in server["replicas"]]
    yield from _table(("replica", "model", "phase", "streams", "tokens", "device"), [*running, *parked])
    yield from _calibration(server["calibration"])


def _replica(replica: Mapping[str, Any]) -> Sequence[str]:
    return (
        replica["id"],
        replica["model"],
        "retiring" if replica["retiring"] else replica["phase"],
        str(replica["streams"]),
        str(replica["tokens"]),
        _gb(replica["device_bytes"]),
    )


def _calibration(figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"  learned of {figures['starts']} starts (± a start's standard error):"
    fixed = figures["fixed_start_s"]
    rows = [
        (
            tier,
            f"{_gb(speed['value'])}/s ± {speed['error']:.0%}",
            *(f"{by_tier[tier]['value']:.3f} ± {by_tier[tier]['error']:.3f} s" for by_tier in fixed.values()),
        )
        for tier, speed in figures["bandwidth_bytes_per_second"].items()
    ]
    yield from _table(("tier", "bandwidth", *(f"{state} start" for state in fixed)), rows)
    park = figures["park_s"]
    yield f"  making room by parking: {park['value']:.3f} ± {park['error']:.3f} s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
        for row in (head, *rows):
            yield "  " + "  ".join(map(str.ljust, row, widths)).rstrip()


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.3g} GB"
