"""Models of Triton's stock Python backend, as anybody might have them in a repository."""

from __future__ import annotations

from pathlib import Path

_PREAMBLE = """
import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


def tensors(**values):
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in values.items()])

"""

ADD_SUB_CONFIG = """
backend: "python"
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [4] }, { name: "INPUT1" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [4] }, { name: "OUTPUT1" data_type: TYPE_FP32 dims: [4] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
ADD_SUB = """
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            left, right = (pb_utils.get_input_tensor_by_name(request, f"INPUT{n}").as_numpy() for n in (0, 1))
            answers.append(tensors(OUTPUT0=left + right, OUTPUT1=left - right))
        return answers
"""

# Twice what came in: the difference and the sum of the sum and the difference.
TWICE_CONFIG = """
platform: "ensemble"
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [4] }, { name: "INPUT1" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [4] }, { name: "OUTPUT1" data_type: TYPE_FP32 dims: [4] }]
ensemble_scheduling {
  step [
    {
      model_name: "add_sub"
      model_version: -1
      input_map [{ key: "INPUT0" value: "INPUT0" }, { key: "INPUT1" value: "INPUT1" }]
      output_map [{ key: "OUTPUT0" value: "sum" }, { key: "OUTPUT1" value: "difference" }]
    },
    {
      model_name: "add_sub_again"
      model_version: -1
      input_map [{ key: "INPUT0" value: "sum" }, { key: "INPUT1" value: "difference" }]
      output_map [{ key: "OUTPUT0" value: "OUTPUT0" }, { key: "OUTPUT1" value: "OUTPUT1" }]
    }
  ]
}
"""

# `times` responses, a tenth of a second apart; 13 is refused and 99 ends the process.
REPEAT_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [{ name: "times" data_type: TYPE_INT32 dims: [1] }]
output [{ name: "index" data_type: TYPE_INT32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
REPEAT = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            times = int(pb_utils.get_input_tensor_by_name(request, "times").as_numpy()[0])
            if times == 99:
                os._exit(1)
            sender = request.get_response_sender()
            if times == 13:
                error = pb_utils.InferenceResponse(error=pb_utils.TritonError("thirteen is one too many"))
                sender.send(error, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            for index in range(times):
                if request.is_cancelled():
                    break
                sender.send(tensors(index=np.array([index], np.int32)))
                time.sleep(0.1)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""

# Text in, text out, and its process' memory grows by what `ballast_bytes` says.
UPPER_CONFIG = """
backend: "python"
input [{ name: "text" data_type: TYPE_STRING dims: [1] }]
output [{ name: "upper" data_type: TYPE_STRING dims: [1] }, { name: "pid" data_type: TYPE_INT32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
UPPER = """
class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        said = parameters.get("ballast_bytes", {"string_value": "0"})["string_value"]
        self.ballast = np.ones(int(said), np.uint8)

    def execute(self, requests):
        answers = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[0].decode()
            pid = np.array([os.getpid()], np.int32)
            answers.append(tensors(upper=np.array([text.upper().encode()], np.object_), pid=pid))
        return answers
"""

# The sum of a sequence's values so far.
ACCUMULATE_CONFIG = """
backend: "python"
input [{ name: "value" data_type: TYPE_INT32 dims: [1] }]
output [{ name: "sum" data_type: TYPE_INT32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
sequence_batching {
  oldest { max_candidate_sequences: 4 }
  max_sequence_idle_microseconds: 2000000
  control_input [
    { name: "START" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }] },
    { name: "CORRID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }
  ]
}
"""
ACCUMULATE = """
class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            value, start, number = (
                int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().flat[0])
                for name in ("value", "START", "CORRID")
            )
            self.sums[number] = value + (0 if start else self.sums[number])
            answers.append(tensors(sum=np.array([self.sums[number]], np.int32)))
        return answers
"""

# How many values came, of any number.
COUNT_CONFIG = """
backend: "python"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_INT32 dims: [-1] }]
output [{ name: "count" data_type: TYPE_INT32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
COUNT = """
class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [tensors(count=np.full((len(array), 1), array.size, np.int32)) for array in arrays]
"""

BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("this model cannot be")
"""


def add_ensemble(repository: Path, name: str, config: str) -> Path:
    """Nothing but a configuration."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    return folder


def add_python_model(repository: Path, name: str, config: str, source: str, **parameters: str) -> Path:
    """Writes the model's folder; `parameters` go into its configuration."""
    folder = add_ensemble(repository, name, config)
    (folder / "1" / "model.py").write_text(_PREAMBLE + source)
    said = [f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}' for key, text in parameters.items()]
    (folder / "config.pbtxt").write_text("\n".join([config, *said]))
    return folder
