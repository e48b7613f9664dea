"""The repository that the table is about."""

from __future__ import annotations

import re
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serverless_triton.scheduler.catalogue import PRIVATE_INPUTS, PRIVATE_OUTPUTS

DEMO_CONFIG = Path(__file__).parents[2] / "model_repository" / "smollm2-135m-instruct" / "config.pbtxt"
_ONNX = 'backend: "onnxruntime" input [{ name: "x" data_type: TYPE_FP32 dims: [2] }]'


def demo_config(name: str) -> str:
    """As `serverless-triton add` writes it for the demo model."""
    return re.sub(r'^name: "[^"]*"', f'name: "{name}"', DEMO_CONFIG.read_text())


def plain_config() -> str:
    """The demo model's tensors that clients see, for a Python model that gives one response a request."""
    config = text_format.Parse(demo_config("plain"), model_config_pb2.ModelConfig())
    config.backend = "python"
    config.ClearField("model_transaction_policy")
    for tensors, private in ((config.input, PRIVATE_INPUTS), (config.output, PRIVATE_OUTPUTS)):
        public = [tensor for tensor in tensors if tensor.name not in private]
        del tensors[:]
        tensors.extend(public)
    return str(text_format.MessageToString(config))


def add_bystanders(repository: Path) -> None:
    """Models that nobody loads: two sound ones, one of another backend, one whose configuration cannot be read."""
    sound = [(name, demo_config(name)) for name in ("sleeper", "stranger")]
    for name, config in (*sound, ("onnx", _ONNX), ("broken", "name: {")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(config)


def add_served(repository: Path) -> None:
    """What the gateway has where the recorded server had `m` and `plain`: two models of ours."""
    for name in ("m", "plain"):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(demo_config(name))
