"""A plain tritonclient user: one streamed request, read message by message. For the demo, benchmarks and tests."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc

MESSAGE_TIMEOUT_S = 120.0


@dataclass
class Heard:
    """What one client of one stream heard, message by message."""

    texts: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    stream_id: str | None = None
    output_ids: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class GrpcStream:
    """One request on one client stream of tritonclient, read as it comes."""

    def __init__(
        self, address: str, model: str, prompt: str, *, headers: Mapping[str, str] | None = None, **sampling: Any
    ) -> None:
        """`headers` go with the stream."""
        self.heard = Heard()
        self.client = triton_grpc.InferenceServerClient(address)
        self._queue: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(callback=lambda result, error: self._queue.put((result, error)), headers=headers)
        self.client.async_stream_infer(
            model,
            generation_inputs(prompt, **sampling),
            request_id="of the client's own",
            outputs=[triton_grpc.InferRequestedOutput(name) for name in ("text_output", "output_ids", "finish_reason")],
            enable_empty_final_response=True,
        )

    def next(self, timeout_s: float = MESSAGE_TIMEOUT_S) -> bool:
        """Hear one more message; False when it was the last."""
        result, error = self._queue.get(timeout=timeout_s)
        if error is not None:
            self.heard.errors.append(str(error))
            return False
        return self._take(result)

    def _take(self, result: Any) -> bool:
        response = result.get_response()
        self.heard.stream_id = response.parameters["stream_id"].string_param
        text = result.as_numpy("text_output")
        if text is not None and text.size:
            self.heard.texts.append(text[0].decode())
            self.heard.times_s.append(time.monotonic())
            self.heard.output_ids += [int(i) for i in result.as_numpy("output_ids")]
        reason = result.as_numpy("finish_reason")
        if reason is not None and reason.size and reason[0]:
            self.heard.finish_reason = reason[0].decode()
        return not response.parameters["triton_final_response"].bool_param

    def read(self, messages: int) -> Heard:
        """Hear so many messages."""
        for _ in range(messages):
            self.next()
        return self.heard

    def rest(self) -> Heard:
        """Hear everything to the end."""
        while self.next():
            pass
        self.close()
        return self.heard

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()

    def cancel(self) -> None:
        self.client.stop_stream(cancel_requests=True)
        self.client.close()


def generation_inputs(prompt: str, *, stream: bool = True, **sampling: Any) -> list[Any]:
    """vllm_backend's tensors for tritonclient.grpc."""
    text = triton_grpc.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([prompt.encode()], dtype=np.object_))
    streaming = triton_grpc.InferInput("stream", [1], "BOOL")
    streaming.set_data_from_numpy(np.array([stream]))
    parameters = triton_grpc.InferInput("sampling_parameters", [1], "BYTES")
    parameters.set_data_from_numpy(np.array([json.dumps(sampling).encode()], dtype=np.object_))
    reason = triton_grpc.InferInput("return_finish_reason", [1], "BOOL")
    reason.set_data_from_numpy(np.array([True]))
    return [text, streaming, parameters, reason]
