"""Whole clusters drawn at random, for what must hold of every decision."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from serverless_triton.scheduler.admission import ReplicaId, ServerName
from serverless_triton.scheduler.definitions import new_replica_id
from serverless_triton.scheduler.view import DeviceView, ModelView, Phase, ReplicaView, ServerView
from tests.unit.scheduler.worlds import GB

OLD, NEW = "0" * 12, "1" * 12


@dataclass(frozen=True)
class Drawn:
    """Servers that are never too full, and what runs on them."""

    servers: tuple[ServerView, ...]
    replicas: tuple[ReplicaView, ...]
    models: tuple[ModelView, ...]


def drawn(seed: int, servers: int = 6, models: int = 5) -> Drawn:
    """The same for the same seed. Figures are few and coarse, so that ties are common."""
    random = Random(seed)
    catalogue = tuple(_model(random, number) for number in range(models))
    machines = tuple(_server(random, number, catalogue) for number in range(servers))
    replicas: list[ReplicaView] = []
    for server in machines:
        for _ in range(random.randrange(5)):
            one = _replica(random, server, random.choice(catalogue), len(replicas))
            beside = [other for other in replicas if other.server == server.name]
            if all(other.model != one.model for other in beside) and is_kept(server, [*beside, one]):
                replicas.append(one)
    return Drawn(machines, tuple(replicas), catalogue)


def is_kept(server: ServerView, replicas: list[ReplicaView]) -> bool:
    """No device, nor DRAM, holds more than it has; counted here without the code that is tested."""
    devices = {device.id: device.memory_bytes for device in server.devices} or {0: server.device_memory_bytes}
    for one in replicas:
        for device in one.devices:
            devices[device] -= -(-server.device_bytes_of(one) // len(one.devices))
    weights = sum({one.checkpoint: one.checkpoint_bytes for one in replicas}.values())
    return (
        min(devices.values()) >= 0 and weights + sum(server.host_bytes_of(one) for one in replicas) <= server.dram_bytes
    )


def _model(random: Random, number: int) -> ModelView:
    foreign = random.random() < 0.1
    return ModelView(
        name=f"m{number}",
        checkpoint="" if foreign else f"{random.choice(['', '', 's3:/'])}/models/{random.choice([number, number, 0])}",
        checkpoint_bytes=0 if foreign else GB,
        device_bytes=random.choice([1, 1, 2, 3]) * GB,
        host_bytes=random.choice([0, GB]) if foreign else 0,
        foreign=foreign,
        load_s=2.0,
        max_streams=random.choice([1, 2, 4]),
        definition=NEW,
        devices=random.choice([1, 1, 1, 2]),
        migration_s_per_token=random.choice([0.0, 0.001]),
        migration_fixed_s=random.choice([0.0, 0.1]),
        fixed_offset_s=random.choice([{}, {"cold": 0.3}, {"cold": -9.0, "parked": 0.01}]),
        priority=random.choice([0, 0, 0, 1]),
        pinned=random.random() < 0.1,
    )


def _server(random: Random, number: int, models: tuple[ModelView, ...]) -> ServerView:
    devices = tuple(
        DeviceView(id=one, memory_bytes=random.choice([2, 4]) * GB) for one in range(random.choice([0, 1, 2, 4]))
    )
    speed = random.choice([0.5, 1.0, 2.0])
    stubs = {
        one.name: new_replica_id(one.name, random.choice([OLD, NEW, ""])) for one in models if random.random() < 0.2
    }
    return ServerView(
        name=ServerName(f"s{number:02}"),
        device_memory_bytes=sum(device.memory_bytes for device in devices) or 4 * GB,
        dram_bytes=random.choice([3, 6]) * GB,
        bandwidth={
            "remote": random.choice([0.1, 4.0]) * GB,
            "ssd": speed * GB,
            "dram": random.choice([1.0, 20.0]) * GB,
        },
        fixed_start_s={
            "cold": {"dram": 0.25, "ssd": 0.2, "remote": random.choice([0.1, 0.2])},
            "parked": {"dram": 0.05, "ssd": 0.05, "remote": 0.05},
        },
        park_s=random.choice([0.0, 0.05, 0.5]),
        queued_bytes=random.choice([0, 0, GB]),
        remote_queued_bytes=random.choice([0, 0, GB]),
        in_dram=frozenset(one.checkpoint for one in models if one.checkpoint and random.random() < 0.3),
        on_ssd=frozenset(one.checkpoint for one in models if one.is_remote and random.random() < 0.3),
        parked={name: ReplicaId(stub) for name, stub in stubs.items()},
        device_holds_weights=random.random() < 0.5,
        devices=devices,
        draining=random.random() < 0.1,
    )


def _replica(random: Random, server: ServerView, model: ModelView, number: int) -> ReplicaView:
    ids = [device.id for device in server.devices] or [0]
    return ReplicaView(
        id=ReplicaId(f"r{number:03}"),
        model=model.name,
        checkpoint=model.checkpoint,
        checkpoint_bytes=model.checkpoint_bytes,
        device_bytes=model.device_bytes,
        host_bytes=model.host_bytes,
        server=server.name,
        phase=random.choice([Phase.READY] * 4 + [Phase.LOADING]),
        streams=random.choice([0, model.max_streams]),
        max_streams=random.choice([model.max_streams] * 4 + [0]),
        idle_since_s=float(random.randrange(4)),
        definition=random.choice([NEW, NEW, OLD]),
        tokens=random.randrange(4) * 100,
        devices=tuple(sorted(random.sample(ids, min(model.devices, len(ids))))),
        priority=model.priority,
        pinned=model.pinned,
        model_view=model,
    )
