"""What `/v2/cluster/status` says: servers, their tiers, replicas and who waits, as JSON-able values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serverless_triton.scheduler.calibration import ServerFigures
from serverless_triton.scheduler.cluster import ServerState
from serverless_triton.scheduler.control_loop import ControlLoop


def cluster_status(loop: ControlLoop) -> dict[str, Any]:
    """One moment of the control loop's picture. Bytes and seconds."""
    servers = loop.cluster.servers.values()
    return {
        "epoch": loop.epoch,
        "version": loop.cluster.version,
        "waiting": loop.waiting_by_model(),
        "servers": [_server(loop, server) for server in sorted(servers, key=lambda s: s.name)],
    }


def _calibration(figures: ServerFigures) -> dict[str, Any]:
    """Each figure with its standard error for a single start; bandwidths' as a share."""
    return {
        "starts": figures.observations,
        "bandwidth_bytes_per_second": _with_errors(figures.bandwidth, figures.bandwidth_error),
        "fixed_start_s": {
            state: _with_errors(by_tier, figures.fixed_error_s[state])
            for state, by_tier in figures.fixed_start_s.items()
        },
        "park_s": {"value": figures.park_s, "error": figures.park_error_s},
    }


def _with_errors(values: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, dict[str, float]]:
    return {name: {"value": value, "error": errors[name]} for name, value in values.items()}


def _server(loop: ControlLoop, server: ServerState) -> dict[str, Any]:
    return {
        "name": server.name,
        "triton": "up" if server.triton_up else "down",
        "agent": "up" if server.agent_up else "away",
        "workers": "ready" if server.workers_ready else "warming",
        "takes_starts": server.takes_starts,
        "device_memory_bytes": server.device_memory_bytes,
        "dram_bytes": server.dram_bytes,
        "calibration": _calibration(loop.cluster.calibration.server(server.name)),
        "queued_bytes": loop.cluster.queued_bytes(server.name),
        "in_dram": sorted(server.in_dram),
        "on_ssd": sorted(server.on_ssd),
        "replicas": [
            {
                "id": replica.id,
                "model": replica.model.name,
                "phase": replica.phase.value,
                "version": replica.model.version,
                "definition": replica.model.definition,
                "retiring": replica.retiring,
                "streams": len(replica.streams),
                "tokens": sum(replica.held_tokens.values()),
                "worker_pid": server.worker_pids.get(replica.id, 0),
                "stub_pid": server.stub_pids.get(replica.id, 0),
                "foreign": replica.model.foreign,
                "device_bytes": replica.model.device_bytes,
                "host_bytes": replica.model.host_bytes,
                "exactness": None if replica.exactness is None else asdict(replica.exactness),
            }
            for replica in sorted(loop.cluster.on_server(server.name), key=lambda r: r.id)
        ],
        "parked": [
            {
                "id": stub,
                "model": model,
                "stub_pid": server.stub_pids.get(stub, 0),
                "private_bytes": server.parked.bytes_of(stub),
            }
            for stub, model in server.parked.items()
        ],
    }
