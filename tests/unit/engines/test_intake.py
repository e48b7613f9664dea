"""What a model admits: texts that can be too long only are refused before their tokens are looked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from serverless_triton.backend.engines.chat_template import ChatTemplate
from serverless_triton.backend.engines.intake import Intake
from serverless_triton.backend.engines.protocol import GenerationRequest, InvalidRequest


class CountingTokenizer:
    """Implements detokenizer.Tokenizer: three bytes a token."""

    longest_token_bytes = 3

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.encoded.append(text)
        return [1] * -(-len(text.encode()) // 3)

    def decode(self, ids: Sequence[int]) -> str:
        return "abc" * len(ids)


@pytest.fixture
def tokenizer() -> CountingTokenizer:
    return CountingTokenizer()


@pytest.fixture
def intake(tokenizer: CountingTokenizer) -> Intake:
    template = ChatTemplate("{{ messages[0].content * 10 }}")
    return Intake(tokenizer=tokenizer, vocabulary=9, eos_ids=(), max_sequence_tokens=11, chat_template=template)


def ask(**prompt: Any) -> GenerationRequest:
    return GenerationRequest(request=1, **prompt)


def test_a_text_that_may_just_fit_is_tokenised(intake: Intake) -> None:
    assert len(intake.begin(ask(text="abc" * 10)).prompt_ids) == 10


@pytest.mark.parametrize(
    "prompt",
    [{"text": "a" * 31}, {"text": "汉" * 10 + "a"}, {"messages": [{"role": "user", "content": "abcd"}]}],
    ids=["bytes", "characters of several bytes", "a chat"],
)
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(
    intake: Intake, tokenizer: CountingTokenizer, prompt: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match=r"the prompt has \d+ bytes, .* shorten the prompt to at most 10 tokens"):
        intake.begin(ask(**prompt))
    assert tokenizer.encoded == []
