"""Plays the world for a keeper: checkpoints that do not exist, loads that end when a test says so."""

from serverless_triton.loader.cache import Image
from serverless_triton.loader.checkpoint import Checkpoint, CheckpointFile
from serverless_triton.loader.effects import LoadResult, RecordedEffects
from serverless_triton.loader.errors import LoaderError
from serverless_triton.loader.keeper import Keeper
from serverless_triton.loader.processes import ProcessId

FROM_SSD = LoadResult(tier="ssd", direct_io=True, verified=True)
MEGABYTES = 1 << 20
CLIENTS = (1, 2, 3, 4, 99)


def process(client: int) -> ProcessId:
    return ProcessId(pid=1000 + client, start_time=client)


def session(client: int) -> str:
    """Of one that calls itself after its process, so that a later connection of that process goes on with it."""
    return f"session-{client}"


def connect(keeper: Keeper) -> Keeper:
    """The same keeper, with a handful of clients."""
    for client in CLIENTS:
        keeper.connect(client, process(client))
    return keeper


def checkpoint(path: str, size_bytes: int = MEGABYTES, mtime_ns: int = 0, device: str = "disk:1") -> Checkpoint:
    file = CheckpointFile(name="m", real_path=f"{path}/m", bytes=size_bytes, mtime_ns=mtime_ns, inode=1)
    return Checkpoint(path=path, device=device, files=(file,))


def attach(
    keeper: Keeper, client: int, request_id: int, wanted: Checkpoint, now_s: float, *, progress: bool = False
) -> None:
    keeper.attach(client, request_id, session(client), wanted, now_s, progress=progress)


def finish(keeper: Keeper, effects: RecordedEffects, now_s: float, image: Image | None = None) -> None:
    """The load that was started last, or that of `image`, ends well."""
    keeper.load_finished(image or effects.started[-1], FROM_SSD, now_s)


def fail(keeper: Keeper, effects: RecordedEffects, error: LoaderError, now_s: float) -> None:
    """The load that was started last ends badly."""
    keeper.load_failed(effects.started[-1], error, now_s)


def loaded(keeper: Keeper, effects: RecordedEffects, wanted: Checkpoint | str) -> Image:
    """It is in the store and nobody uses it."""
    wanted = checkpoint(wanted) if isinstance(wanted, str) else wanted
    keeper.prefetch(99, 1, wanted, 0)
    effects.replies.pop()
    image = effects.started[-1]
    finish(keeper, effects, 1)
    return image
