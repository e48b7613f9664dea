"""Checks a request against the model that is to serve it and begins its generation. Clients' mistakes end here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serverless_triton.backend.engines.chat_template import ChatTemplate
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
    chat_template: ChatTemplate | None = None

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
            deadline_unix_s=request.deadline_unix_s if isinstance(request, GenerationRequest) else None,
        )
        if parameters.min_tokens and len(generation.stop_ids) >= self.vocabulary:
            raise InvalidRequest("every token is a stop token, and none may come before min_tokens; name fewer of them")
        generation.replay(request.resume_token_ids)
        return generation

    def check_resumed(self, ids: Sequence[int]) -> None:
        """Raises InvalidRequest."""
        self._check_ids("resume_token_ids", ids)

    def _prompt_ids(self, request: GenerationRequest | CatchUpRequest) -> Sequence[int]:
        messages = request.messages if isinstance(request, GenerationRequest) else None
        if [request.text, request.input_ids, messages].count(None) != 2:
            raise InvalidRequest("give exactly one of text_input, input_ids and messages")
        if request.input_ids is not None:
            ids, what = request.input_ids, "input_ids"
        elif messages is not None:
            ids, what = self._chat_ids(messages), "the prompt made of messages"
        else:
            ids, what = self._text_ids(request.text or "", "text_input"), "the tokenized text_input"
        if not ids:
            raise InvalidRequest(f"{what} is empty; send at least one token")
        self._room(ids)
        self._check_ids(what, ids)
        return ids

    def _chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """A chat template writes the special tokens that it wants."""
        if self.chat_template is None:
            raise InvalidRequest("this model has no chat template; send text_input or input_ids instead of messages")
        return self._text_ids(self.chat_template.render(messages), "messages", add_special_tokens=False)

    def _text_ids(self, text: str, what: str, *, add_special_tokens: bool = True) -> Sequence[int]:
        if self.tokenizer is None:
            raise InvalidRequest(f"this model has no tokenizer; send input_ids instead of {what}")
        self._check_length(text, self.tokenizer.longest_token_bytes, what)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _check_length(self, text: str, longest_token_bytes: int, what: str) -> None:
        """Raises InvalidRequest for a text that is too long whatever its tokens are: to find them, all others wait."""
        size = len(_utf8(text, what))
        if size > (self.max_sequence_tokens - 1) * longest_token_bytes:
            raise self._too_long(f"{size} bytes, too many for the tokens that a prompt may have")

    def _check_ids(self, what: str, ids: Sequence[int]) -> None:
        wrong = [token for token in ids if type(token) is not int or not 0 <= token < self.vocabulary]
        if wrong:
            raise InvalidRequest(f"{what} holds {shown(wrong[0])}; token ids here are 0 to {self.vocabulary - 1}")

    def _room(self, prompt_ids: Sequence[int]) -> int:
        room_tokens = self.max_sequence_tokens - len(prompt_ids)
        if room_tokens < 1:
            raise self._too_long(f"{len(prompt_ids)} tokens")
        return room_tokens

    def _too_long(self, length: str) -> InvalidRequest:
        return InvalidRequest(
            f"the prompt has {length}, and prompt and answer together may have {self.max_sequence_tokens}; shorten the "
            f"prompt to at most {self.max_sequence_tokens - 1} tokens or raise the model's max_sequence_tokens"
        )


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair
        raise InvalidRequest(f"{what} is not Unicode text at character {error.start}") from error
