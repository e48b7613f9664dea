"""The engine benchmark: figures from answers, tasks as messages, claims and tables from rounds, and each contender."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from perf.claims import CLAIMS, judge
from perf.engine import contender, rivals
from perf.engine.answers import Answer, batch_figures
from perf.engine.benchmark import EngineBenchmark, long_prompts, prompts
from perf.engine.contenders import CONTENDERS
from perf.engine.report import documents, markdown
from perf.engine.task import Task, task_from_json
from perf.results import Measurement, Round, Run
from tests.unit.perf.runs import run_of

PROMPTS = ((5, 9, 17, 200), (3,), tuple(range(40, 75)))
CONFIG = {
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}


def task_of(name: str, checkpoint: Path) -> Task:
    return Task(
        contender=name,
        checkpoint=checkpoint,
        dtype="float32",
        threads=1,
        batches=(1, 3),
        prompts=PROMPTS,
        answer_tokens=12,
        prefills=(tuple(range(64)), tuple(range(1, 65))),
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    config = AutoConfig.for_model(**CONFIG)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    save_file(model.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({**config.to_dict(), "dtype": "float32"}, default=str))
    return path


def test_speed_counts_from_the_prompts_to_the_last_token_of_all():
    answers = [Answer(ids=(1, 2, 3), at_s=(1.0, 1.5, 2.0)), Answer(ids=(4, 5, 6), at_s=(2.0, 3.0, 4.0))]
    assert batch_figures(answers) == pytest.approx(
        {"batch2_tokens_per_s": 1.5, "batch2_ttft_s": 1.5, "batch2_itl_s": 0.75, "batch2_itl_p99_s": 1.0}
    )


def test_a_task_survives_the_way_to_its_process():
    task = task_of("ours", Path("/a"))
    assert task_from_json(task.to_json()) == task


def test_a_task_has_room_for_the_longest_of_its_sequences():
    assert task_of("ours", Path("/a")).longest_tokens == 65


def word_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "the": 1, "river": 2, "The": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_prompts_are_their_seeds_and_differ_in_length():
    first, again, other = (prompts(word_tokenizer(), seed, 16) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(map(len, first))) > 4


def test_prompts_for_prefill_are_long_and_begin_differently():
    given = long_prompts(word_tokenizer(), 1, 6)
    assert {len(prompt) for prompt in given} == {512}
    assert len({prompt[:64] for prompt in given}) == 6


def test_every_row_of_a_seed_gets_the_same_ids(tmp_path: Path):
    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tasks = [EngineBenchmark().task(row, tmp_path, 1) for row in rivals.ROWS]
    assert len({(task.prompts, task.prefills, task.threads, task.batches) for task in tasks}) == 1


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_gives_the_tokens_that_the_model_gives(name: str, checkpoint: Path):
    outcome = contender.main(task_of(name, checkpoint))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    expected = [Answer(ids=greedy(model, prompt, 12), at_s=()).digest for prompt in PROMPTS]
    assert outcome.answers == expected
    assert {"batch1_tokens_per_s", "batch3_ttft_s", "batch3_itl_s", "prefill_s"} < outcome.figures.keys()


def greedy(model: torch.nn.Module, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(tokens):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("name", rivals.OUR_CONTENDERS)
def test_a_recomputed_sequence_is_fed_anew(name: str, checkpoint: Path):
    task = task_from_json(json.dumps({**json.loads(task_of(name, checkpoint).to_json()), "recomputed_tokens": 100}))
    figures = contender.main(task).figures
    assert 0 < figures["recomputed_token_s"] < figures["decoded_token_s"]


def engine_run(changes: Mapping[str, Mapping[str, float]]) -> Run:
    """Two rounds in which every row has the same figures, but for the changes."""
    plain = {f"batch{size}_{metric}": 0.1 for size in rivals.BATCHES for metric in ("ttft_s", "itl_s", "itl_p99_s")}
    plain |= {f"batch{size}_tokens_per_s": 100.0 for size in rivals.BATCHES}
    plain |= {"prefill_s": 0.5, "decoded_token_s": 0.04, "recomputed_token_s": 0.001}
    measurements = {
        row.name: Measurement(figures={**plain, **changes.get(row.name, {})}, details={"answers": ["a", "b"]})
        for row in rivals.ROWS
    }
    rounds = (Round(number=number, order=tuple(measurements), measurements=measurements) for number in range(2))
    return run_of(*rounds, benchmark="engine")


def test_every_engine_claim_follows_from_the_rows():
    changes = {
        rivals.OURS: {"batch16_tokens_per_s": 300.0, "prefill_s": 0.6},
        rivals.OURS_EXACT: {"batch16_itl_s": 0.13, "prefill_s": 0.9},
        rivals.GENERATE: {"batch16_tokens_per_s": 200.0},
    }
    claims = {claim["id"]: claim["value"] for claim in judge(engine_run(changes))}
    assert claims == pytest.approx(
        {
            "engine.batch16_vs_generate": 1.5,
            "engine.batch16_vs_transformers_cb": 3.0,
            "engine.prefill_vs_forward": 1.2,
            "engine.exact_prefill_cost": 1.5,
            "engine.exact_decode_cost": 1.3,
            "engine.recompute_vs_decode": 40.0,
        }
    )
    assert claims.keys() == {claim.id for claim in CLAIMS if claim.benchmark == "engine"}


def test_the_documents_name_every_contender_and_say_what_recomputing_gains():
    texts = documents(engine_run({}))
    assert all(title in texts[".md"] and title in texts[".svg"] for title in rivals.TITLES.values())
    assert "40.0 ms a token decoded alone, 1.00 ms a token recomputed, 40 times faster" in texts[".md"]


def test_the_table_says_how_many_answers_agree():
    assert "4 of 4 answers of the largest batch were the same tokens" in markdown(engine_run({}))
