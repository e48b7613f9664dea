"""Checks a request against the model that is to serve it and begins its generation. Clients' mistakes end here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from serverless_triton.backend.engines.detokenizer import Tokenizer
from serverless_triton.backend.engines.generation import Generation
from serverless_triton.backend.engines.protocol import CatchUpRequest, GenerationRequest, InvalidRequest
from serverless_triton.backend.engines.sampling_parameters import SamplingParameters, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What a model admits. `max_sequence_tokens` bounds prompt and answer together, whatever `max_tokens` says."""

    tokenizer: Tokenizer | None
    vocabulary: int
    eos_ids: Collection[int]
    max_sequence_tokens: int

    def begin(self, request: GenerationRequest | CatchUpRequest) -> Generation:
        """The generation, with what another attempt generated taken over. Raises InvalidRequest."""
        parameters = SamplingParameters.parse(request.sampling_parameters)
        if parameters.stop and self.tokenizer is None:
            raise InvalidRequest("'stop' needs text, and this model has no tokenizer; use 'stop_token_ids'")
        prompt_ids = self._prompt_ids(request)
        self.check_resumed(request.resume_token_ids)
        self._check_ids("sampling parameter 'stop_token_ids'", parameters.stop_token_ids)
        generation = Generation(
            request=request.request,
            prompt_ids=prompt_ids,
            parameters=parameters,
            tokenizer=self.tokenizer,
            eos_ids=self.eos_ids,
            room_tokens=self._room(prompt_ids),
        )
        if parameters.min_tokens and len(generation.stop_ids) >= self.vocabulary:
            raise InvalidRequest("every token is a stop token, and none may come before min_tokens; name fewer of them")
        generation.replay(request.resume_token_ids)
        return generation

    def check_resumed(self, ids: Sequence[int]) -> None:
        """Raises InvalidRequest."""
        self._check_ids("resume_token_ids", ids)

    def _prompt_ids(self, request: GenerationRequest | CatchUpRequest) -> Sequence[int]:
        if (request.text is None) == (request.input_ids is None):
            raise InvalidRequest("give exactly one of text_input and input_ids")
        if request.input_ids is not None:
            ids, what = request.input_ids, "input_ids"
        elif self.tokenizer is not None:
            ids, what = self.tokenizer.encode(_unicode(request.text or "")), "the tokenized text_input"
        else:
            raise InvalidRequest("this model has no tokenizer; send input_ids instead of text_input")
        if not ids:
            raise InvalidRequest(f"{what} is empty; send at least one token")
        self._check_ids(what, ids)
        return ids

    def _check_ids(self, what: str, ids: Sequence[int]) -> None:
        wrong = [token for token in ids if type(token) is not int or not 0 <= token < self.vocabulary]
        if wrong:
            raise InvalidRequest(f"{what} holds {shown(wrong[0])}; token ids here are 0 to {self.vocabulary - 1}")

    def _room(self, prompt_ids: Sequence[int]) -> int:
        room_tokens = self.max_sequence_tokens - len(prompt_ids)
        if room_tokens < 1:
            raise InvalidRequest(
                f"the prompt has {len(prompt_ids)} tokens, and prompt and answer together may have "
                f"{self.max_sequence_tokens}; shorten the prompt to at most {self.max_sequence_tokens - 1} tokens "
                "or raise the model's max_sequence_tokens"
            )
        return room_tokens


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair
        raise InvalidRequest(f"text_input is not Unicode text at character {error.start}") from error
    return text
