"""The rival: a language model in Triton as it is usually written, with torch and transformers in the Python backend."""

import json
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from transformers import AutoModelForCausalLM, AutoTokenizer


class TritonPythonModel:
    """Text in, text out; loads everything in `initialize`."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        checkpoint = parameters["checkpoint"]["string_value"]
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
        max_tokens = int(pb_utils.get_input_tensor_by_name(request, "max_tokens").as_numpy()[0])
        inputs = self.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        new = self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", np.array([new.encode()], dtype=np.object_))])
