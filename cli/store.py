"""`serverless-triton store`: runs a node's store and speaks to it; repacks, hashes and verifies checkpoints on disk."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from serverless_triton.loader.client import Store
from serverless_triton.loader.daemon import serve
from serverless_triton.loader.deadline import MOST_TIMEOUT_S
from serverless_triton.loader.integrity import IntegrityReport, hash_checkpoint, verify_checkpoint
from serverless_triton.loader.progress import Progress
from serverless_triton.loader.receipts import LoadReceipt
from serverless_triton.loader.repack import RepackReport, repack_checkpoint
from serverless_triton.loader.store_config import PAGES, StoreConfig
from serverless_triton.loader.store_status import DeviceStatus, ImageStatus, QueueStatus, SsdCacheStatus, StoreStatus

_socket = click.option(
    "--socket",
    type=click.Path(path_type=Path),
    required=True,
    envvar="SERVERLESS_TRITON_STORE",
    show_envvar=True,
    help="The store's unix socket.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_timeout = click.option(
    "--timeout-s",
    type=click.FloatRange(min=0, max=MOST_TIMEOUT_S),
    default=3600.0,
    show_default=True,
    help="Seconds to wait; then the load is cancelled, unless others want it.",
)
# Not made a Path, which would spell an empty path "." and a URL anew.
_path = click.argument("path", metavar="PATH", type=click.Path())
_device = click.option("--device", default="cpu", show_default=True, help="cpu, or a GPU such as cuda:0.")
# A checkpoint by path or URL.
_checkpoint = click.argument("path", metavar="PATH")


@click.group("store", short_help="A node's weights in memory; checkpoints made ready for it.")
def command() -> None:
    """Keep checkpoints in memory that all processes of a node share, and make them ready for that.

    PATH is a .safetensors file, a directory that holds one or has an index of its shards, or a URL (https://, s3://,
    hf://); repack, hash and verify take no URL. Exit codes: 0 done, 1 refused or failed, 2 wrong usage. evict and
    unpin are done too where there was nothing to do, and say so.
    """


@command.command("serve", short_help="Run the store until Ctrl-C.")
@_socket
@click.option("--dram-bytes", type=click.IntRange(1), help="Budget of all images.  [default: half of what is free]")
@click.option(
    "--pages",
    type=click.Choice(PAGES),
    default="auto",
    show_default=True,
    help="What the memory is made of. auto: the first of the others that gives pages of 2 MiB here, or 4k. hugetlb: "
    "pages that the machine keeps (nr_hugepages). tmpfs: a private mount, as root. memfd: pages of 2 MiB where "
    "shmem_enabled allows. 4k: small pages, everywhere.",
)
@click.option("--prefault/--no-prefault", default=True, show_default=True, help="Take the memory ahead of loads.")
@click.option(
    "--configure-host", is_flag=True, help="Change machine settings as --pages needs; they stay.  [default: no]"
)
@click.option("--gpu-bytes", type=click.IntRange(0), default=0, help="Budget of each GPU's memory.  [default: none]")
@click.option("--threads", type=click.IntRange(1, 256), default=4, show_default=True, help="Reading threads of a load.")
@click.option("--ssd-bytes-per-second", type=click.IntRange(0), default=0, help="Limit of all reads.  [default: none]")
@click.option(
    "--remote-bytes-per-second", type=click.IntRange(0), default=0, help="The same for the network.  [default: none]"
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Where copies of remote checkpoints are kept, with --cache-bytes.  [default: nowhere]",
)
@click.option("--cache-bytes", type=click.IntRange(0), default=0, help="How much of them at most, with --cache-dir.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare with the hashes beside files.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serve Prometheus metrics on 127.0.0.1; 0: any free port, which the log names.  [default: no metrics]",
)
def serve_command(socket: Path, **options: Any) -> None:
    """Run the store until Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = StoreConfig(socket_path=socket, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    serve(config)


@command.command("load", short_help="Bring a checkpoint into memory or onto a GPU.")
@_checkpoint
@_socket
@_device
@_timeout
@_json
def load(path: str, socket: Path, device: str, timeout_s: float, as_json: bool) -> None:
    """Bring the checkpoint at PATH into memory, or onto a GPU, and wait until it is there."""
    receipt = _load(path, socket, timeout_s, device)
    _print(asdict(receipt), _loaded(path, receipt), as_json)


@command.command("prefetch", short_help="Have the store load a checkpoint, without waiting.")
@_checkpoint
@_socket
@_json
def prefetch(path: str, socket: Path, as_json: bool) -> None:
    """Have the store load PATH, without waiting.

    What is wrong with its bytes shows later: in the store's log and metrics, and to whoever loads it next.
    """
    with Store(socket) as store:
        image = store.prefetch(path)
    _print(asdict(image), _image_line(image), as_json)


@command.command("pin", short_help="Load a checkpoint and keep it until it is unpinned.")
@_checkpoint
@_socket
@_timeout
@_json
def pin(path: str, socket: Path, timeout_s: float, as_json: bool) -> None:
    """Load PATH, wait for it and keep it in memory until it is unpinned."""
    with Store(socket) as store:
        store.pin(path)
    receipt = _load(path, socket, timeout_s)
    _print(asdict(receipt), f"{_loaded(path, receipt)}, pinned", as_json)


@command.command("unpin", short_help="Let a checkpoint go when its room is needed.")
@_checkpoint
@_socket
@_json
def unpin(path: str, socket: Path, as_json: bool) -> None:
    """Let PATH go again when its room is needed."""
    with Store(socket) as store:
        images = store.unpin(path)
    _print({"unpinned": images}, _done("unpinned", images, path, "is pinned"), as_json)


@command.command("evict", short_help="Drop a checkpoint from memory.")
@_checkpoint
@_socket
@_json
def evict(path: str, socket: Path, as_json: bool) -> None:
    """Drop PATH from memory; refused while it is used or pinned."""
    with Store(socket) as store:
        images = store.evict(path)
    _print({"evicted": images}, _done("evicted", images, path, "is in the store"), as_json)


@command.command("estimate", short_help="Say how long a load would take now.")
@_checkpoint
@_socket
@_device
@_json
def estimate(path: str, socket: Path, device: str, as_json: bool) -> None:
    """Say how long a load of PATH would take now."""
    with Store(socket) as store:
        answer = store.estimate(path, device=device)
    basis = "" if answer.is_measured else ", by an assumed bandwidth"
    line = f"{answer.total_s:.3f} s from {answer.tier}, {answer.queue_s:.3f} s of it in the queue{basis}"
    _print(asdict(answer), line, as_json)


@command.command("status", short_help="Show what the store holds and does.")
@_socket
@_json
def status(socket: Path, as_json: bool) -> None:
    """Show what the store holds and does."""
    with Store(socket) as store:
        now = store.status()
    _print(asdict(now), "\n".join(_status_lines(now)), as_json)


@command.command("repack", short_help="Write a copy that loads faster, with hashes.")
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path())
@_json
def repack(source: str, target: str, as_json: bool) -> None:
    """Write SOURCE into the new directory TARGET: aligned, in layer order, with hashes; plain safetensors."""
    with _bar("repacking") as progress:
        report = repack_checkpoint(source, target, progress)
    line = f"repacked {_files(report)} into {target}, {len(report.copied)} more copied"
    _print(asdict(report), line, as_json)


@command.command("hash", short_help="Write hashes beside files known to be good.")
@_path
@click.option("--force", is_flag=True, help="Replace hashes that a file differs from.  [default: refuse]")
@_json
def hash_(path: str, force: bool, as_json: bool) -> None:
    """Write the hashes of PATH's files beside them; they should be known to be good.

    Hashes that lie there already must be the same: a file that differs from them may be damaged.
    """
    with _bar("hashing") as progress:
        report = hash_checkpoint(path, progress, force=force)
    _print(asdict(report), f"hashed {_files(report)}", as_json)


@command.command("verify", short_help="Compare every byte with the hashes.")
@_path
@_json
def verify(path: str, as_json: bool) -> None:
    """Compare every byte of PATH with the hashes beside its files."""
    with _bar("verifying") as progress:
        report = verify_checkpoint(path, progress)
    _print(asdict(report), f"{_files(report)}: every byte is as it was hashed", as_json)


def _load(path: str, socket: Path, timeout_s: float, device: str = "cpu") -> LoadReceipt:
    with Store(socket) as store, _bar("loading") as progress:
        return store.load(path, timeout_s, device=device, progress=progress)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    """A bar on standard error where that is a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = max(total, 1)
            bar.update(max(0, done - bar.pos))

        yield show


def _print(content: dict[str, Any], line: str, as_json: bool) -> None:
    click.echo(json.dumps(content) if as_json else line)


def _cache_lines(status: SsdCacheStatus) -> list[str]:
    if not status.capacity_bytes:
        return []
    copies = "1 copy" if status.entries == 1 else f"{status.entries} copies"
    line = f"{copies} on the SSD, {_size(status.used_bytes)} of {_size(status.capacity_bytes)}"
    return [f"{line}; {status.problem}" if status.problem else line]


def _loaded(path: str, receipt: LoadReceipt) -> str:
    if receipt.tier == "gpu":
        return f"{path} was on the GPU: {_size(receipt.bytes)}"
    copied = f", copied in {receipt.copy_s:.3f} s more" if receipt.copy_s else ""
    if receipt.tier == "dram":
        return f"{path} was in memory: {_size(receipt.bytes)}{copied}"
    verified = "verified" if receipt.verified else "not verified"
    scattered = ", scattered" if receipt.scattered else ""
    loaded = f"loaded {path}: {_size(receipt.bytes)} from {receipt.tier} in {receipt.read_s:.3f} s"
    return f"{loaded}{copied}, {verified}{scattered}"


def _status_lines(now: StoreStatus) -> Iterator[str]:
    arena = now.arena
    loads = _count(now.queue_depth, "load")
    yield f"{_size(now.used_bytes)} of {_size(now.dram_bytes)} used, {loads} waiting or running"
    nodes = f", over nodes {', '.join(map(str, arena.interleaved_nodes))}" if arena.interleaved_nodes else ""
    yield (
        f"arena: {arena.kind}, pages of {arena.page_bytes // 1024} KiB{nodes}, {_size(arena.prefaulted_bytes)} "
        f"prefaulted, {arena.fragmentation:.0%} fragmented"
    )
    yield from map(_queue_line, now.queues)
    yield from _cache_lines(now.ssd_cache)
    yield from map(_image_line, now.images)
    for device in now.devices:
        yield _device_line(device)
        yield from (
            f"  {image.path}: {image.state}, {_count(image.leases, 'lease')}" for image in device.images if image.path
        )


def _queue_line(queue: QueueStatus) -> str:
    speeds = "".join(f", {tier} {_size(speed)}/s" for tier, speed in queue.bandwidth_bytes_per_second.items())
    reading = f"reading {queue.running}" if queue.running else "idle"
    waiting = (
        f", {queue.waiting_loads} waiting, {_count(queue.prefetches, 'prefetch', 'es')}, {queue.paused_loads} paused"
    )
    return f"{queue.device}: {reading}{waiting if queue.unread_bytes else ''}{speeds}"


def _device_line(device: DeviceStatus) -> str:
    speed = f", copies at {_size(device.copy_bytes_per_second)}/s" if device.copy_bytes_per_second else ""
    held = f", {_size(device.held_bytes)} held from before" if device.held_bytes else ""
    return f"{device.device}: {_size(device.used_bytes)} of {_size(device.budget_bytes)} used{held}{speed}"


def _image_line(image: ImageStatus) -> str:
    orphaned = f" ({image.orphaned_leases} orphaned)" if image.orphaned_leases else ""
    marks = "".join(f", {mark}" for mark in ("pinned", "scattered") if getattr(image, mark))
    return f"{image.path}: {image.state}, {_size(image.read_bytes)}, {_count(image.leases, 'lease')}{orphaned}{marks}"


def _done(verb: str, images: int, path: str, otherwise: str) -> str:
    return f"{verb} {_count(images, 'image')} of {path}" if images else f"no image of {path} {otherwise}"


def _files(report: IntegrityReport | RepackReport) -> str:
    return f"{_count(report.files, 'file')} of {_size(report.bytes)}"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"


def _size(size_bytes: float) -> str:
    if size_bytes < 1e9:
        return f"{size_bytes / 1e6:.1f} MB"
    return f"{size_bytes / 1e9:.2f} GB"
