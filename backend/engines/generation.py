"""One request's token state: its ids, the text they release and whether it has ended.

Everything here follows from prompt, ids and sampling parameters, whoever computed the ids; where they are computed and
in which batch is the engine's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from serverless_triton.backend.engines.detokenizer import Detokenizer, StopStrings, Tokenizer
from serverless_triton.backend.engines.protocol import TokenEvent
from serverless_triton.backend.engines.sampling_parameters import SamplingParameters
from serverless_triton.backend.token_state import StopState, TokenState


class Generation:
    """`room_tokens` is what the KV memory leaves for the answer; `ids` is the answer so far, resumed ids included.

    `deadline_unix_s` is its client's, for the state that it is frozen into.
    """

    def __init__(
        self,
        *,
        request: int,
        prompt_ids: Sequence[int],
        parameters: SamplingParameters,
        tokenizer: Tokenizer | None,
        eos_ids: Collection[int],
        room_tokens: int,
        deadline_unix_s: float | None = None,
    ) -> None:
        self.request = request
        self.deadline_unix_s = deadline_unix_s
        self.prompt_ids = tuple(prompt_ids)
        self.parameters = parameters
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_ids = frozenset(parameters.stop_token_ids).union(() if parameters.ignore_eos else eos_ids)
        self._longest = min(parameters.max_tokens, room_tokens)
        self._detokenizer = Detokenizer(tokenizer, prompt_ids) if tokenizer is not None else None
        self._stops = StopStrings(parameters.stop)
        self._told = False
        self.emitted_characters = 0  # of text, released by events or before a resume

    def replay(self, resume_token_ids: Sequence[int]) -> None:
        """Take over what another attempt generated; its text has been released already."""
        for token_id in resume_token_ids:
            if self.finish_reason is None:
                self.accept(token_id)

    def accept(self, token_id: int) -> str:
        """The text that the next id releases. Sets `finish_reason` where the id is the last; all text is out then."""
        text = self._accept(token_id)
        self.emitted_characters += len(text)
        return text

    def _accept(self, token_id: int) -> str:
        assert self.finish_reason is None
        self.ids.append(token_id)
        if token_id in self.stop_ids and len(self.ids) > self.parameters.min_tokens:
            return self._finish("stop")
        text = self._text(self._detokenizer.push(token_id) if self._detokenizer is not None else "")
        if self._stops.matched:
            self.finish_reason = "stop"
        elif len(self.ids) >= self._longest:
            text += self._finish("length")
        return text

    def event(self, first_position: int, text: str) -> TokenEvent:
        """What happened since `first_position`. The first event of a request carries what later attempts need."""
        first, self._told = not self._told, True
        return TokenEvent(
            request=self.request,
            first_position=first_position,
            output_ids=tuple(self.ids[first_position:]),
            text=text,
            num_input_tokens=len(self.prompt_ids),
            prompt_ids=self.prompt_ids if first else None,
            finish_reason=self.finish_reason,
        )

    def freeze(self, contract: str) -> TokenState:
        """Ends it here. What is held back of its text comes out where it goes on."""
        assert self.finish_reason is None
        self.finish_reason = "frozen"
        parameters = self.parameters.as_given()
        seed = parameters.pop("seed")
        return TokenState(
            prompt_ids=self.prompt_ids,
            output_ids=tuple(self.ids),
            emitted_length=self.emitted_characters,
            sampling_parameters=parameters,
            seed=seed,
            stop_state=StopState(held_text=self._stops.held_text),
            deadline_unix_s=self.deadline_unix_s,
            contract=contract,
        )

    def _text(self, text: str) -> str:
        if len(self.ids) < self.parameters.min_tokens:
            return text  # a stop string in it must not stop, so there is nothing to hold back
        return self._stops.push(text)

    def _finish(self, reason: str) -> str:
        text = self._stops.push(self._detokenizer.flush()) if self._detokenizer is not None else ""
        self.finish_reason = "stop" if self._stops.matched else reason
        return text + self._stops.flush()
