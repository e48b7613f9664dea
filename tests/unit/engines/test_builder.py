"""What a builder learns ahead of time, keeps, and takes through a fork."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serverless_triton.backend.engines.protocol import EngineSettings, GenerationRequest, ModelNotSupported
from serverless_triton.backend.engines.torch.builder import Learned, TorchEngineBuilder
from serverless_triton.backend.engines.torch.kv_memory import KVPlan, KVShape
from serverless_triton.backend.model_repository import kv_bytes_per_token

WORKER_TREE = """
import os, signal, sys, torch
from safetensors.torch import load_file
from serverless_triton.backend.engines.protocol import EngineSettings, GenerationRequest
from serverless_triton.backend.engines.torch.builder import TorchEngineBuilder

checkpoint, dtype = sys.argv[1:]
builder = TorchEngineBuilder()
builder.learn(checkpoint, dtype)
assert len(os.listdir("/proc/self/task")) == 1, "a thread was started before the fork"

def serve(threads):
    torch.set_num_threads(threads)
    tensors = load_file(checkpoint + "/model.safetensors")
    settings = EngineSettings(dtype=dtype, max_sequence_tokens=64, max_streams=2)
    engine = builder.build(checkpoint, tensors, settings=settings)
    sampling = {"max_tokens": 12, "ignore_eos": True}
    engine.submit(GenerationRequest(request=1, input_ids=list(range(30)), sampling_parameters=sampling))
    ids = []
    while engine.has_work:
        ids += [token for event in engine.step() for token in event.output_ids]
    return ids

for threads in (1, 2, 2):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that inherited a broken thread pool hangs
        print(serve(threads), flush=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status:
        sys.exit(f"the worker with {threads} threads ended with status {status}")
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_workers_forked_after_learning_serve_with_threads_of_their_own(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    shutil.copytree(llama.path, tmp_path, dirs_exist_ok=True)
    save_file(llama.tensors, tmp_path / "model.safetensors")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-c", WORKER_TREE, str(tmp_path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split("\n")[:3]
    if dtype == "float32":
        assert answers == [str(llama.generate(list(range(30)), 12))] * 3
    else:
        assert len(answers) == 3


def test_learning_rehearses_only_where_no_thread_can_start(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, rehearsed in ((4, False), (1, True)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        builder = TorchEngineBuilder()
        builder.learn(str(llama.path), "auto")
        assert builder._skeletons.get(llama.path).rehearsed is rehearsed


def test_one_builder_makes_engines_that_do_not_share_weights(llama: Any, drive: Any) -> None:
    builder = TorchEngineBuilder()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in llama.tensors.items()}
    settings = EngineSettings(dtype="float32", max_sequence_tokens=64, max_streams=1)
    real = builder.build(str(llama.path), llama.tensors, settings=settings)
    empty = builder.build(str(llama.path), zeros, settings=settings)
    request = GenerationRequest(request=1, input_ids=[3, 4], sampling_parameters={"max_tokens": 6})
    assert drive(empty, [request])[1].ids == [0] * 6
    assert drive(real, [request])[1].ids == llama.generate([3, 4], 6)


def test_an_unknown_dtype_is_refused(llama: Any) -> None:
    with pytest.raises(ModelNotSupported, match="dtype 'int8' is unknown to the torch engine; use auto, float32"):
        TorchEngineBuilder().learn(str(llama.path), "int8")


def test_options_of_another_engine_are_refused(llama: Any) -> None:
    with pytest.raises(ModelNotSupported, match="load_s is unknown; the torch engine has no options"):
        llama.build(options={"load_s": 1})


def test_what_is_learned_follows_the_contents_of_the_files(tmp_path: Path) -> None:
    made: list[Path] = []
    learned = Learned(("a", "b"), lambda path: made.append(path) or len(made), limit=2)
    paths = [tmp_path / name for name in ("one", "same", "other", "third")]
    for path, text in zip(paths, ("x", "x", "y", "z"), strict=True):
        path.mkdir()
        (path / "a").write_text(text)
    assert [learned.get(path) for path in paths[:3]] == [1, 1, 2]
    assert learned.get(paths[3]) == 3
    assert learned.get(paths[2]) == 2
    assert learned.get(paths[0]) == 4  # the least recently used was dropped
    (paths[0] / "b").write_text("new")
    assert learned.get(paths[0]) == 5
    assert learned.take(paths[0]) == 5
    assert learned.get(paths[0]) == 6


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "opt"])
def test_the_budget_is_what_the_repository_promises(checkpoint: Callable[[str], Any], name: str) -> None:
    model = checkpoint(name)
    shape = KVShape.of_config(model.reference.config)
    config = json.loads((model.path / "config.json").read_text())
    promised = kv_bytes_per_token(config, "bfloat16") * 48 * 3
    settings = EngineSettings(max_sequence_tokens=48, max_streams=3, kv_cache_bytes=promised)
    plan = KVPlan.of(shape, torch.bfloat16, torch.device("cpu"), settings)
    assert plan.total_tokens == 48 * 3
    assert plan.total_tokens * shape.token_bytes(torch.bfloat16) == promised


SHAPE = KVShape(layers=2, kv_heads=1, head_dim=4)
TOKEN_BYTES = SHAPE.token_bytes(torch.float32)
GPU = torch.device("cuda")


def gpu_plan(kv_tokens: int | None, max_sequence_tokens: int = 200, max_streams: int = 3) -> KVPlan:
    settings = EngineSettings(
        max_sequence_tokens=max_sequence_tokens,
        max_streams=max_streams,
        kv_cache_bytes=None if kv_tokens is None else kv_tokens * TOKEN_BYTES,
    )
    return KVPlan.of(SHAPE, torch.float32, GPU, settings)


@pytest.mark.parametrize(("kv_tokens", "slots"), [(256, 1), (511, 1), (512, 2), (600, 2), (5000, 3), (None, 3)])
def test_slots_on_a_gpu_take_no_more_than_their_budget(kv_tokens: int | None, slots: int) -> None:
    assert gpu_plan(kv_tokens).slots == slots  # each is allocated with 256 tokens, a multiple of 128


@pytest.mark.parametrize("kv_tokens", [199, 200, 255])
def test_a_budget_on_a_gpu_below_one_whole_slot_is_refused(kv_tokens: int) -> None:
    with pytest.raises(ModelNotSupported, match=f"one sequence of 200 tokens needs {256 * TOKEN_BYTES}"):
        gpu_plan(kv_tokens)


@pytest.mark.parametrize("max_streams", [2**40, 2**60])
def test_a_pool_that_no_memory_holds_is_refused_with_what_to_lower(llama: Any, max_streams: int) -> None:
    with pytest.raises(ModelNotSupported, match=rf"no memory for the KV cache of \d+ bytes; lower.*{max_streams}"):
        llama.build(max_streams=max_streams)
