"""A gateway without a cluster: `python -m perf.gateway.lone_gateway REPOSITORY ADDRESS`.

Every model is ready on the one server at ADDRESS. It prints its gRPC port, and ends by SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from serverless_triton.scheduler.admission import FakeAdmission
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.settings import GatewaySettings
from serverless_triton.scheduler.repository_watch import RepositoryWatch
from serverless_triton.scheduler.runtime import spare_lasting_objects


@asynccontextmanager
async def lone_gateway(repository: Path, address: str) -> AsyncIterator[Gateway]:
    """It watches the repository as a scheduler's gateway does, so that a request costs the disk nothing."""
    catalogue = Catalogue(repository)
    gateway = Gateway(
        catalogue=catalogue,
        admission=FakeAdmission({"server-0": address}),
        settings=GatewaySettings(http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=0.0),
    )
    watching = asyncio.create_task(RepositoryWatch(catalogue).run())
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()
        watching.cancel()


async def main(repository: Path, address: str) -> None:
    async with lone_gateway(repository, address) as gateway:
        spare_lasting_objects()
        print(gateway.grpc_port, flush=True)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
