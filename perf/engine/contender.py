"""One contender in a process of its own: `python -m perf.engine.contender TASK`, its outcome on standard output.

Loading comes before the clock, and every batch is rehearsed with a few tokens, so that what is set up on first use
counts for nobody.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median

import torch

from perf import processes
from perf.engine.answers import Answer, batch_figures
from perf.engine.contenders import CONTENDERS, AnswerFailed, Contender, Ours
from perf.engine.task import Outcome, Task, task_from_json

REHEARSED_TOKENS = 4
RECOMPUTED_TIMES = 3


def main(task: Task) -> Outcome:
    """Raises AnswerFailed."""
    torch.set_num_threads(task.threads)
    contender = CONTENDERS[task.contender](task)
    answered = [_answer(contender, task, batch) for batch in task.batches]
    figures = {name: value for answers in answered for name, value in batch_figures(answers).items()}
    for prompt in task.prefills[:1]:
        contender.prefill_s(prompt)
    figures["prefill_s"] = median(contender.prefill_s(prompt) for prompt in task.prefills[1:])
    if task.recomputed_tokens:
        assert isinstance(contender, Ours)
        figures |= _recompute_figures(contender, task)
    figures["peak_bytes"] = processes.peak_bytes()
    return Outcome(figures=figures, answers=[answer.digest for answer in answered[-1]])


def _answer(contender: Contender, task: Task, batch: int) -> Sequence[Answer]:
    prompts = task.prompts[:batch]
    contender.answer(prompts, REHEARSED_TOKENS)
    answers = contender.answer(prompts, task.answer_tokens)
    if [len(answer.ids) for answer in answers] != [task.answer_tokens] * batch:
        given = [len(answer.ids) for answer in answers]
        raise AnswerFailed(f"{batch} prompts got answers of {given} tokens instead of {task.answer_tokens} each")
    return answers


def _recompute_figures(ours: Ours, task: Task) -> Mapping[str, float]:
    """A token decoded by a stream that is alone, and a token of the same sequence recomputed; all of it is fed anew."""
    prompt = task.prompts[0]
    (answer,) = ours.answer([prompt], task.recomputed_tokens - len(prompt))
    ours.recompute_s(prompt, answer.ids)
    recomputed_s = median(ours.recompute_s(prompt, answer.ids) for _ in range(RECOMPUTED_TIMES))
    return {
        "decoded_token_s": (answer.at_s[-1] - answer.at_s[0]) / (len(answer.ids) - 1),
        "recomputed_token_s": recomputed_s / task.recomputed_tokens,
    }


if __name__ == "__main__":
    try:
        outcome = main(task_from_json(sys.argv[1]))
    except AnswerFailed as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    print(json.dumps(asdict(outcome)), flush=True)
    os._exit(0)  # threads that a contender left are nobody's tokens
