"""Receipts become rows, shapes become models."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from perf.loader.forms import Shape, make_tensors
from perf.results import Round
from perf.start import TITLES, StartBenchmark, path_figures
from perf.start_models import LARGE, write_model
from tests.unit.perf.runs import run_of
from tests.unit.perf.test_waterfall import round_with

SMALL = Shape(
    name="small-computes", layers=2, hidden=128, intermediate=176, key_value=64, vocabulary=1000, computes=True
)


def test_segments_add_up_by_name_and_the_unexplained_has_a_share():
    segments = [("triton.load", 0.2), ("store.load", 0.1), ("triton.load", 0.05), ("unexplained", 0.05)]
    path = [{"name": name, "duration_s": duration_s} for name, duration_s in segments]
    figures = path_figures({"critical_path": path, "actual_s": 0.4})
    assert figures == pytest.approx({"path.triton.load_s": 0.25, "path.store.load_s": 0.1, "unexplained_share": 0.125})


def test_the_large_model_is_a_llama_of_two_gigabytes():
    assert 2.1e9 < sum(2 * torch.Size(shape).numel() for _, shape in LARGE.tensors()) < 2.3e9


def test_weights_that_compute_are_finite_and_small():
    tensors = make_tensors(SMALL, 1)
    weights = tensors["model.layers.1.mlp.up_proj.weight"].abs()
    assert weights.min() >= 2**-6
    assert weights.max() < 2**-5
    assert torch.equal(tensors["model.norm.weight"], torch.ones(128, dtype=torch.bfloat16))


def test_transformers_loads_and_runs_the_random_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVERLESS_TRITON_CACHE", str(tmp_path / "cache"))
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    target = write_model(SMALL, tokenizer, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    with torch.inference_mode():
        logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all()
    assert logits.std() > 0
    assert json.loads((target / "tokenizer.json").read_text()) == {}


def test_every_row_of_ours_has_its_waterfall():
    measured = round_with(0, 0.2).measurements["cold"]
    run = run_of(Round(number=0, order=tuple(TITLES), measurements=dict.fromkeys(TITLES, measured)))
    picture = StartBenchmark().documents(run)[".svg"]
    assert [title for title in TITLES.values() if f"{title}: 200 ms" not in picture] == []
