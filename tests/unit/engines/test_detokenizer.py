"""Text that comes out id by id must be the text of all ids, cut nowhere inside a character or a stop string."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from serverless_triton.backend.engines.detokenizer import Detokenizer, StopStrings
from serverless_triton.backend.engines.fake import ByteTokenizer

TEXT = "naïve café – 汉字 👩‍👩‍👧 e\u0301 \ufffd end"


def pushed(ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(ByteTokenizer(), prompt)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def test_the_pieces_are_the_text() -> None:
    assert "".join(pushed(TEXT.encode())) == TEXT


def test_no_piece_splits_a_character() -> None:
    ids = TEXT.replace("\ufffd", "").encode()
    assert not any("\ufffd" in piece for piece in pushed(ids))


@pytest.mark.parametrize("cut", range(len(TEXT.encode()) + 1))
def test_a_text_cut_anywhere_ends_as_decoding_ends_it(cut: int) -> None:
    ids = TEXT.encode()[:cut]
    assert "".join(pushed(ids)) == ByteTokenizer().decode(ids)


@pytest.mark.parametrize("cut", range(len(TEXT.encode()) + 1))
def test_the_prompt_may_end_anywhere(cut: int) -> None:
    prompt, ids = TEXT.encode()[:cut], "ü done".encode()
    assert "".join(pushed(ids, prompt)) == "ü done"


def test_bytes_that_are_no_text_come_out_as_decoding_shows_them() -> None:
    for seed in range(300):
        ids = random.Random(seed).choices([0x41, 0xC3, 0xA9, 0xE6, 0xB1, 0x89, 0xF0, 0x9F, 0x80, 0xFF], k=12)
        assert "".join(pushed(ids)) == ByteTokenizer().decode(ids)


def test_a_decoder_that_drops_its_first_space_does_not_drop_ours() -> None:
    class Words:
        """As SentencePiece: every token is a word with a space before it, and a text does not begin with a space."""

        def encode(self, text: str) -> list[int]:
            return [ord(word) for word in text.split()]

        def decode(self, ids: Sequence[int]) -> str:
            return "".join(f" {chr(token)}" for token in ids)[1:]

    detokenizer = Detokenizer(Words(), Words().encode("a b"))
    assert [detokenizer.push(ord("c")), detokenizer.push(ord("d"))] == [" c", " d"]


def released(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, bool]:
    stop_strings = StopStrings(stops)
    text = "".join(stop_strings.push(piece) for piece in pieces) + stop_strings.flush()
    return text, stop_strings.matched


def test_text_ends_before_the_stop_string() -> None:
    assert released(["STOP"], ["one ST", "OP two"]) == ("one ", True)


def test_a_stop_string_that_is_only_begun_is_text_after_all() -> None:
    assert released(["STOP"], ["one ST", "ILL S"]) == ("one STILL S", False)


def test_what_may_become_a_stop_string_is_held_back() -> None:
    stop_strings = StopStrings(["\n\n", "END"])
    assert [stop_strings.push(piece) for piece in ("a\n", "b E", "N", "X")] == ["a", "\nb ", "", "ENX"]


def test_the_first_of_several_stop_strings_counts() -> None:
    assert released(["yy", "x"], ["a yy x"]) == ("a ", True)


def test_how_text_is_cut_into_pieces_does_not_matter() -> None:
    for seed in range(500):
        draw = random.Random(seed)
        text = "".join(draw.choices("ab", k=14))
        stops = ["".join(draw.choices("ab", k=draw.randint(1, 4))) for _ in range(2)]
        cuts = sorted(draw.sample(range(15), 4))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 14], strict=True)]
        found = [at for at in map(text.find, stops) if at >= 0]
        assert released(stops, list(text)) == (text[: min(found, default=14)], bool(found)) or len(found) == 2
        if len(stops[0]) == len(stops[1]):  # else a shorter one may end first and yet begin later
            assert released(stops, pieces) == released(stops, list(text))
