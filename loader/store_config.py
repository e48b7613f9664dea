"""What a store daemon is told: its configuration, and the command line that says it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from .estimator import Throttles

# sockaddr_un holds 108 bytes, the last of them a zero.
MAX_SOCKET_PATH_BYTES = 107
# More than any machine has, and little enough to compute with.
MAX_DRAM_BYTES = 1 << 62

# What the arena is made of; "auto" takes the best that this machine has.
Pages = Literal["auto", "hugetlb", "tmpfs", "memfd", "4k"]
PAGES: tuple[Pages, ...] = get_args(Pages)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """`dram_bytes`: budget of all images together; None for a share of what is there (memory_limits.py).
    `prefault`: take all of it ahead, in the background. `configure_host`: change machine settings for `pages`.
    `gpu_bytes`: budget of each GPU's memory, for images that stay there; 0 for none.
    `ssd_bytes_per_second`: limit of all reads together, 0 for none.
    `cache_dir`, `cache_bytes`: where copies of remote checkpoints are kept, and how much of them; None and 0 for none.
    `remote_bytes_per_second`: limit of all reads from the network together, 0 for none.
    `verify`: compare what is read with the hashes beside it, where there are some.
    `metrics_port`: of the loopback interface, for Prometheus; None for no metrics, 0 for any free port.

    Raises ValueError for values that cannot work.
    """

    socket_path: Path
    dram_bytes: int | None = None
    pages: Pages = "auto"
    prefault: bool = True
    configure_host: bool = False
    gpu_bytes: int = 0
    threads: int = 4
    ssd_bytes_per_second: int = 0
    remote_bytes_per_second: int = 0
    cache_dir: Path | None = None
    cache_bytes: int = 0
    verify: bool = True
    metrics_port: int | None = None
    die_with_parent: bool = False

    def __post_init__(self) -> None:
        if len(os.fsencode(self.socket_path)) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"socket path {self.socket_path} is longer than {MAX_SOCKET_PATH_BYTES} bytes; shorten it")
        if self.dram_bytes is not None and not 0 < self.dram_bytes <= MAX_DRAM_BYTES:
            raise ValueError(f"dram_bytes must be positive and at most {MAX_DRAM_BYTES}, not {self.dram_bytes}")
        if self.pages not in PAGES:
            raise ValueError(f"pages must be one of {', '.join(PAGES)}, not {self.pages}")
        if self.gpu_bytes < 0:
            raise ValueError(f"gpu_bytes must be 0 (nothing stays on GPUs) or more, not {self.gpu_bytes}")
        if not 1 <= self.threads <= 256:
            raise ValueError(f"threads must be between 1 and 256, not {self.threads}")
        if self.ssd_bytes_per_second < 0:
            raise ValueError(f"ssd_bytes_per_second must be 0 (no limit) or more, not {self.ssd_bytes_per_second}")
        if self.remote_bytes_per_second < 0:
            raise ValueError(
                f"remote_bytes_per_second must be 0 (no limit) or more, not {self.remote_bytes_per_second}"
            )
        if (self.cache_dir is None) != (self.cache_bytes == 0) or self.cache_bytes < 0:
            raise ValueError(
                "--cache-dir and --cache-bytes (cache_dir, cache_bytes), more than 0, must be given together"
            )
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise ValueError(f"metrics_port must be between 0 and 65535, not {self.metrics_port}")

    @property
    def throttles(self) -> Throttles:
        return Throttles(
            ssd_bytes_per_second=self.ssd_bytes_per_second, remote_bytes_per_second=self.remote_bytes_per_second
        )


def parse_arguments(arguments: Sequence[str] | None = None) -> StoreConfig:
    """The configuration a command line asks for; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m serverless_triton.loader.daemon", description="The store daemon.")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to serve, created with mode 0600")
    parser.add_argument("--dram-bytes", type=int, help="budget of all images together; without it half of what is free")
    parser.add_argument("--pages", choices=PAGES, default="auto", help="auto: the first with 2 MiB pages here")
    parser.add_argument("--no-prefault", action="store_true", help="take memory only when a load needs it")
    parser.add_argument("--configure-host", action="store_true", help="may change this machine's settings for --pages")
    parser.add_argument("--gpu-bytes", type=int, default=0, help="budget of each GPU's memory; 0: nothing on GPUs")
    parser.add_argument("--threads", type=int, default=4, help="reading threads of a load")
    parser.add_argument("--ssd-bytes-per-second", type=int, default=0, help="limit of all reads together; 0: none")
    parser.add_argument("--remote-bytes-per-second", type=int, default=0, help="the same for the network; 0: none")
    parser.add_argument("--cache-dir", type=Path, help="where copies of remote checkpoints are kept")
    parser.add_argument("--cache-bytes", type=int, default=0, help="how much of them at most")
    parser.add_argument("--no-verify", action="store_true", help="leave the hashes beside checkpoints alone")
    parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics on 127.0.0.1; 0: any free port")
    parser.add_argument("--die-with-parent", action="store_true", help="get SIGTERM when the parent process exits")
    options = parser.parse_args(arguments)
    try:
        return StoreConfig(
            socket_path=options.socket,
            dram_bytes=options.dram_bytes,
            pages=options.pages,
            prefault=not options.no_prefault,
            configure_host=options.configure_host,
            gpu_bytes=options.gpu_bytes,
            threads=options.threads,
            ssd_bytes_per_second=options.ssd_bytes_per_second,
            remote_bytes_per_second=options.remote_bytes_per_second,
            cache_dir=options.cache_dir,
            cache_bytes=options.cache_bytes,
            verify=not options.no_verify,
            metrics_port=options.metrics_port,
            die_with_parent=options.die_with_parent,
        )
    except ValueError as error:
        parser.error(str(error))
