"""The engine beside transformers: the same prompts at once, by 1, 4, 8 and 16, each contender in a process of its own.

All of them run on the same number of threads, which do not spin while they wait: neighbours on shared cores are the
engine's ordinary life.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from perf import machine
from perf.engine import report, rivals
from perf.engine.rivals import Row
from perf.engine.task import Ids, Outcome, Task
from perf.harness import BenchmarkFailed, Measure
from perf.results import Measurement, Run
from perf.workloads import WorkloadSpec, generate
from serverless_triton.cli.demo_model import ensure_demo_model

CONTENDER = "perf.engine.contender"
TIMEOUT_S = 600.0
PROMPT_WORDS = (16, 96)
PREFILL_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBenchmark:
    """`prefills` is how often a prompt of PREFILL_TOKENS is timed in each process."""

    name: str = "engine"
    headline: str = f"batch{rivals.BATCHES[-1]}_tokens_per_s"
    full_rounds: int = 3
    packages: tuple[str, ...] = ("tokenizers",)
    rows: tuple[Row, ...] = rivals.ROWS
    batches: tuple[int, ...] = rivals.BATCHES
    answer_tokens: int = 64
    prefills: int = 5
    recomputed_tokens: int = 512

    @contextmanager
    def rivals(self, seed: int) -> Iterator[Mapping[str, Measure]]:
        checkpoint = ensure_demo_model(report=print)
        yield {row.name: partial(run_contender, self.task(row, checkpoint, seed)) for row in self.rows}

    def task(self, row: Row, checkpoint: Path, seed: int) -> Task:
        """What the row's process does. All rows of a seed get the same ids."""
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        return Task(
            contender=row.contender,
            checkpoint=checkpoint,
            dtype=row.dtype,
            threads=len(os.sched_getaffinity(0)),
            batches=self.batches,
            prompts=prompts(tokenizer, seed, self.batches[-1]),
            answer_tokens=self.answer_tokens,
            prefills=long_prompts(tokenizer, seed, self.prefills + 1),
            recomputed_tokens=self.recomputed_tokens if row.recomputes else 0,
        )

    def documents(self, run: Run) -> Mapping[str, str]:
        return report.documents(run)


def prompts(tokenizer: Tokenizer, seed: int, count: int, words: tuple[int, int] = PROMPT_WORDS) -> tuple[Ids, ...]:
    """Of different lengths, as requests are."""
    spec = WorkloadSpec(seed=seed, requests=count, models=("any",), rate_per_s=1.0, prompt_words=words)
    return tuple(tuple(tokenizer.encode(request.prompt).ids) for request in generate(spec))


def long_prompts(tokenizer: Tokenizer, seed: int, count: int) -> tuple[Ids, ...]:
    """Each of PREFILL_TOKENS and with a beginning of its own, so that nobody has seen it before."""
    words = (PREFILL_TOKENS, PREFILL_TOKENS)  # a word is a token at least
    return tuple(prompt[:PREFILL_TOKENS] for prompt in prompts(tokenizer, seed, count, words))


def run_contender(task: Task) -> Measurement:
    """In a process of its own. Raises BenchmarkFailed."""
    command = [sys.executable, "-m", CONTENDER, task.to_json()]
    try:
        finished = subprocess.run(
            command,
            cwd=machine.ROOT,
            env={**os.environ, **environment(task.threads)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkFailed(f"{task.contender} in {task.dtype} took longer than {TIMEOUT_S:.0f} s") from error
    if finished.returncode:
        last_lines = "\n".join(finished.stderr.strip().splitlines()[-5:])
        raise BenchmarkFailed(f"{task.contender} in {task.dtype} failed ({finished.returncode}): {last_lines}")
    outcome = Outcome(**json.loads(finished.stdout.splitlines()[-1]))
    return Measurement(figures=outcome.figures, details={"threads": task.threads, **asdict(outcome)})


def environment(threads: int) -> Mapping[str, str]:
    """Read when torch is imported. Also for threads that a contender starts: torch's own setting is one thread's."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
