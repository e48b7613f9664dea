"""Who answers: our engine, transformers' `generate()`, and transformers' own continuous batching.

Each is made with its model loaded and ready; its imports are its own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from perf.engine.answers import Answer
from perf.engine.task import Ids, Task

if TYPE_CHECKING:
    from serverless_triton.backend.engines.protocol import Engine

# A pad is masked, so any token does.
PAD = 0
NEVER = -1
PAGE_TOKENS = 256  # transformers' default


class AnswerFailed(Exception):
    """A contender did not give what it was asked for."""


class Contender(Protocol):
    def answer(self, prompts: Sequence[Ids], tokens: int) -> Sequence[Answer]:
        """All prompts at once, `tokens` ids for each, greedily. Raises AnswerFailed."""

    def prefill_s(self, prompt: Ids) -> float:
        """From handing over the prompt to its first token."""


class Ours:
    """The engine as a worker drives it, on one thread of control; its text is detokenised as it always is."""

    def __init__(self, task: Task, *, mode: str) -> None:
        from serverless_triton.backend.engines.protocol import EngineSettings
        from serverless_triton.backend.engines.registry import engine_builder
        from serverless_triton.loader import load_file

        builder: Any = engine_builder("torch")
        builder.learn(str(task.checkpoint), task.dtype)
        self._engine: Engine = builder.build(
            str(task.checkpoint),
            load_file(task.checkpoint),
            settings=EngineSettings(
                dtype=task.dtype,
                mode=mode,
                max_sequence_tokens=task.longest_tokens,
                max_streams=max(task.batches),
                threads=task.threads,
            ),
        )
        self._numbers = itertools.count()

    def answer(self, prompts: Sequence[Ids], tokens: int) -> Sequence[Answer]:
        return self._run([(prompt, ()) for prompt in prompts], tokens)

    def prefill_s(self, prompt: Ids) -> float:
        return self.recompute_s(prompt, ())

    def recompute_s(self, prompt: Ids, answered: Ids) -> float:
        """From handing over a sequence of which `answered` was generated before to the next token."""
        (answer,) = self._run([(prompt, answered)], len(answered) + 1)
        return answer.at_s[0]

    def _run(self, sequences: Sequence[tuple[Ids, Ids]], tokens: int) -> Sequence[Answer]:
        from serverless_triton.backend.engines.protocol import FailureEvent, GenerationRequest, TokenEvent

        sampling = {"max_tokens": tokens, "ignore_eos": True}
        heard: dict[int, tuple[list[int], list[float]]] = {}
        begin_s = time.perf_counter()
        for (prompt, answered), number in zip(sequences, self._numbers, strict=False):
            heard[number] = ([], [])
            self._engine.submit(
                GenerationRequest(
                    request=number, input_ids=prompt, resume_token_ids=answered, sampling_parameters=sampling
                )
            )
        while self._engine.has_work:
            for event in self._engine.step():
                if isinstance(event, FailureEvent):
                    raise AnswerFailed(event.message)
                if isinstance(event, TokenEvent):
                    ids, at_s = heard[event.request]
                    ids += event.output_ids
                    at_s += [time.perf_counter() - begin_s] * len(event.output_ids)
        return [Answer(ids=tuple(ids), at_s=tuple(at_s)) for ids, at_s in heard.values()]


class Generate:
    """`generate()` on a batch that is padded on the left, as transformers' documentation has it."""

    def __init__(self, task: Task) -> None:
        self._model = _pretrained(task)

    def answer(self, prompts: Sequence[Ids], tokens: int) -> Sequence[Answer]:
        import torch

        longest = max(map(len, prompts))
        padded = [(longest - len(prompt), list(prompt)) for prompt in prompts]
        at_s: list[float] = []
        begin_s = time.perf_counter()

        def watch(input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            """A criterion to stop that sees every step and stops none."""
            at_s.append(time.perf_counter() - begin_s)
            return torch.zeros(len(input_ids), dtype=torch.bool)

        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor([[PAD] * pads + prompt for pads, prompt in padded]),
                attention_mask=torch.tensor([[0] * pads + [1] * len(prompt) for pads, prompt in padded]),
                max_new_tokens=tokens,
                do_sample=False,
                stopping_criteria=[watch],
            )
        return [Answer(ids=tuple(ids), at_s=tuple(at_s)) for ids in output[:, longest:].tolist()]

    def prefill_s(self, prompt: Ids) -> float:
        """The model's own forward pass, without what `generate` does around it."""
        import torch

        begin_s = time.perf_counter()
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits
        int(logits[0, -1].argmax())
        return time.perf_counter() - begin_s


class ContinuousBatching:
    """`generate_batch()` with a manager that stays, so that neither its start nor its cache is made anew each time."""

    def __init__(self, task: Task) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        self._model = _pretrained(task)
        self._generation = GenerationConfig(do_sample=False, eos_token_id=NEVER, pad_token_id=PAD)
        # Room for every sequence; by itself it would take most of the machine's memory for its cache.
        pages = max(task.batches) * -(-task.longest_tokens // PAGE_TOKENS)
        batch_tokens = max(sum(map(len, task.prompts)), task.longest_tokens)
        self._batching = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=pages,
            max_batch_tokens=batch_tokens,
            max_requests_per_batch=max(task.batches),  # else the first call's number, for good
            allow_block_sharing=False,
        )

    def answer(self, prompts: Sequence[Ids], tokens: int) -> Sequence[Answer]:
        begin_s = time.perf_counter()
        outputs = self._model.generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=self._generation,
            continuous_batching_config=self._batching,
            max_new_tokens=tokens,
            record_timestamps=True,
            persistent_manager=True,
        )
        return [_answer_of(output, begin_s) for output in outputs.values()]

    def prefill_s(self, prompt: Ids) -> float:
        (answer,) = self.answer([prompt], 1)
        return answer.at_s[0]


def _answer_of(output: Any, begin_s: float) -> Answer:
    if output.error is not None:
        raise AnswerFailed(output.error)
    ids = tuple(output.generated_tokens)
    return Answer(ids=ids, at_s=tuple(at_s - begin_s for at_s in output.timestamps[: len(ids)]))


def _pretrained(task: Task) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(task.checkpoint, dtype=getattr(torch, task.dtype)).eval()
    model.generation_config.eos_token_id = None  # answers go on to their length
    model.generation_config.pad_token_id = PAD
    return model


CONTENDERS: Mapping[str, Callable[[Task], Contender]] = {
    "ours": partial(Ours, mode="fast"),
    "ours_exact": partial(Ours, mode="exact"),
    "generate": Generate,
    "continuous_batching": ContinuousBatching,
}
