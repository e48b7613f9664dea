"""A zygote whose workers multiply matrices with all their threads when they load: run as a script by the tests."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from serverless_triton.backend import zygote
from serverless_triton.backend.engines import registry
from serverless_triton.backend.engines.fake import FakeEngineBuilder

SIZE = 384  # large enough for every library to use its threads


class MatmulBuilder(FakeEngineBuilder):
    def build(self, checkpoint: str, tensors: Mapping[str, torch.Tensor], **settings: Any) -> Any:
        ones = torch.ones(SIZE, SIZE)
        product = ones @ ones
        assert torch.get_num_threads() == 2
        assert bool((product == SIZE).all())
        assert float(tensors["weight"].sum()) == 0.0
        engine = super().build(checkpoint, tensors, **settings)
        engine.tensors = tensors  # type: ignore[attr-defined]  # a lease lasts as long as they do
        return engine


if __name__ == "__main__":
    registry._BUILDERS["matmul"] = ("__main__", "MatmulBuilder")
    sys.exit(zygote.main())
