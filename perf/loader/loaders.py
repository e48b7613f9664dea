"""How each loader is called, ours among them: `LOADERS[name](**arguments)` imports it and returns the call to be timed.

Such a call takes a checkpoint's path and its files, and returns tensors by name with whatever keeps them alive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from perf import machine
from perf.loader.ceiling import DirectReader
from perf.loader.heat import Target
from perf.loader.memory import private_memory

if TYPE_CHECKING:
    import torch

# What `make peers` installs: the extra `peers` of pyproject.toml.
PEER_PACKAGES = ("runai-model-streamer", "fastsafetensors", "tensorizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """`receipt`: what our store said about the load."""

    tensors: Mapping[str, torch.Tensor]
    keeps_alive: Any = None
    receipt: Mapping[str, Any] | None = None


Load: TypeAlias = Callable[[Target], Loaded]


def missing_packages() -> list[str]:
    return [name for name in PEER_PACKAGES if machine.version_of(name) is None]


def safetensors() -> Load:
    from safetensors.torch import load_file

    def load(target: Target) -> Loaded:
        return Loaded(tensors={name: tensor for file in target.files for name, tensor in load_file(file).items()})

    return load


def torch_load(*, mmap: bool) -> Load:
    import torch

    return lambda target: Loaded(tensors=torch.load(target.path, weights_only=True, mmap=mmap))


def runai() -> Load:
    from runai_model_streamer import SafetensorsStreamer

    def load(target: Target) -> Loaded:
        streamer = SafetensorsStreamer()
        streamer.__enter__()  # the tensors outlive the call, so the streamer does
        streamer.stream_files([str(file) for file in target.files])
        return Loaded(tensors=dict(streamer.get_tensors()), keeps_alive=streamer)

    return load


def fastsafetensors() -> Load:
    from fastsafetensors import fastsafe_open

    def load(target: Target) -> Loaded:
        # `nogds`: without GPUDirect Storage, the only way on a CPU.
        opened = fastsafe_open(filenames=[str(file) for file in target.files], nogds=True, device="cpu")
        names = list(opened.keys())
        return Loaded(tensors={name: opened.get_tensor(name) for name in names}, keeps_alive=opened)

    return load


def tensorizer() -> Load:
    from tensorizer import TensorDeserializer

    def load(target: Target) -> Loaded:
        deserializer = TensorDeserializer(str(target.path), device="cpu")
        return Loaded(tensors=dict(deserializer.items()), keeps_alive=deserializer)

    return load


def load_file() -> Load:
    """Ours without a store."""
    from serverless_triton.loader import load_file

    return lambda target: Loaded(tensors=load_file(target.path))


def attach(*, socket: str) -> Load:
    """Ours; the connection to the store is part of the call."""
    from serverless_triton.loader import Store

    def load(target: Target) -> Loaded:
        store = Store(socket)
        attachment = store.attach(target.path)
        return Loaded(tensors=attachment.tensors, keeps_alive=(store, attachment), receipt=asdict(attachment.receipt))

    return load


def premapped_attach(*, socket: str, path: str) -> Load:
    """Ours in a worker that maps the arena ahead of the model's load into it: both come before the clock."""
    from serverless_triton.loader import Store

    store = Store(socket)
    store.premap()
    with Store(socket) as other:
        other.load(path)

    def load(target: Target) -> Loaded:
        attachment = store.attach(target.path)
        return Loaded(tensors=attachment.tensors, keeps_alive=(store, attachment), receipt=asdict(attachment.receipt))

    return load


def direct_reader(*, threads: int, chunk_bytes: int, size_bytes: int) -> Load:
    """The ceiling: reads, and makes no tensors of it."""
    reader = DirectReader(threads=threads, chunk_bytes=chunk_bytes, content=private_memory(size_bytes))

    def load(target: Target) -> Loaded:
        reader.read(target.files)
        return Loaded(tensors={})

    return load


LOADERS: Mapping[str, Callable[..., Load]] = {
    "safetensors": safetensors,
    "torch_load": torch_load,
    "runai": runai,
    "fastsafetensors": fastsafetensors,
    "tensorizer": tensorizer,
    "load_file": load_file,
    "attach": attach,
    "premapped_attach": premapped_attach,
    "direct_reader": direct_reader,
}
