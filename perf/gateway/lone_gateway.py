"""A gateway without a cluster: `python -m perf.gateway.lone_gateway REPOSITORY ADDRESS`.

Every model is ready on the one server at ADDRESS. It prints its gRPC port, and ends by SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from serverless_triton.scheduler.admission import FakeAdmission
from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.settings import GatewaySettings
from serverless_triton.scheduler.runtime import spare_lasting_objects


async def main(repository: Path, address: str) -> None:
    gateway = Gateway(
        catalogue=Catalogue(repository),
        admission=FakeAdmission({"server-0": address}),
        settings=GatewaySettings(http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=0.0),
    )
    await gateway.start()
    spare_lasting_objects()
    print(gateway.grpc_port, flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await gateway.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
