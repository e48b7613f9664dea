"""How the scheduler's process runs: gRPC's threads and Python's garbage collector, so that messages wait for neither.

gRPC has two ways to wait for sockets. Since 1.80 its Python library takes the newer one, the EventEngine: there a
message passes one thread more on its way in, and its threads wake each other for every message. With the older one the
thread that waits for completions also reads the sockets, which takes a tenth of a message's CPU time less. A gRPC that
has no older one any more says so on standard error, once, and runs as it does.
"""

from __future__ import annotations

import gc
import os

GRPC_EXPERIMENTS = "GRPC_EXPERIMENTS"
WITHOUT_EVENT_ENGINE = "-event_engine_client,-event_engine_listener"


def poll_in_one_thread() -> None:
    """Before gRPC is imported, which reads it then. What the environment says already stays."""
    os.environ.setdefault(GRPC_EXPERIMENTS, WITHOUT_EVENT_ENGINE)


def spare_lasting_objects() -> None:
    """Once everything is started: what is there then stays, so no collection need look at it again (17 ms each)."""
    gc.collect()
    gc.freeze()
