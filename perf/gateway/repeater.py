"""A replica that says the same to everybody, as fast as it is heard: `python -m perf.gateway.repeater TOKENS EACH`.

Its messages are made once, in the form in which a tritonserver sends those of our backend; sending them costs this
process little. It prints its port, and ends by SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.gateway.fake_upstream import token_response

_STREAM = "x" * 22  # a gateway's stream ids are as long


def script(tokens: int, each: int) -> list[bytes]:
    """A whole answer: messages of `each` tokens, the last with the finish reason."""
    return [_message(first, min(each, tokens - first), tokens) for first in range(0, tokens, each)]


def _message(first: int, count: int, tokens: int) -> bytes:
    response = token_response(
        attempt=0,
        first_position=first,
        output_ids=range(first, first + count),
        text=" abc" * count,
        prompt_ids=[1] if first == 0 else None,
        finish_reason="length" if first + count == tokens else None,
    )
    response.model_name, response.model_version, response.id = "relayed", "1", _STREAM
    response.parameters["triton_final_response"].bool_param = first + count == tokens
    message: bytes = pb.ModelStreamInferResponse(infer_response=response).SerializeToString()
    return message


class Repeater:
    """A ModelStreamInfer that does not read what it is asked."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        self._messages = messages

    async def serve(self, requests: AsyncIterator[bytes], context: Any) -> None:
        async for _ in requests:
            for message in self._messages:
                await context.write(message)


async def main(tokens: int, each: int) -> None:
    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(Repeater(script(tokens, each)).serve)
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelStreamInfer": method})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
