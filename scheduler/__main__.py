"""`python -m serverless_triton.scheduler`: the scheduler's process."""

from __future__ import annotations

import sys

from serverless_triton.scheduler.runtime import poll_in_one_thread


def run() -> int:
    poll_in_one_thread()
    from serverless_triton.scheduler.service import main  # which imports gRPC

    return main()


if __name__ == "__main__":
    sys.exit(run())
