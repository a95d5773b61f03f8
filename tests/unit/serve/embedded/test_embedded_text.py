from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.serve.embedded.text import REPLACEMENT, TextStream, bytes_of
from tests.models import make_tokenizer

TOKENIZER = make_tokenizer()


def decode(ids: Sequence[int]) -> str:
    return TOKENIZER.backend_tokenizer.decode(list(ids), skip_special_tokens=True)


def pieces(ids: Sequence[int], stop: Sequence[str] = (), decode: Callable[..., str] = decode) -> list[str]:
    stream = TextStream(decode, stop)
    out = []
    for token in ids:
        out.append(stream.push(token))
        if stream.stopped:
            return out
    return [*out, stream.finish()]


@given(st.text(max_size=60))
def test_the_pieces_are_the_text_and_each_is_whole_characters(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    out = pieces(ids)
    assert "".join(out) == decode(ids).rstrip(REPLACEMENT)
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in out)


@given(st.text(alphabet="é漢😀a", min_size=1, max_size=20), st.integers(min_value=1, max_value=3))
def test_an_answer_cut_within_a_character_ends_before_it(text: str, cut: int) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"][:-cut]
    said = "".join(pieces(ids))
    assert REPLACEMENT not in said
    assert text.startswith(said)
    assert len(said.encode()) > len(text.encode()) - cut * 8 - 4


@given(
    st.text(alphabet="abc ", max_size=40),
    st.lists(st.text(alphabet="abc ", min_size=1, max_size=4), max_size=3),
)
def test_the_answer_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    said = "".join(pieces(ids, stops))
    assert not any(stop in said for stop in stops)
    assert text.startswith(said)
    rest = text[len(said) :]
    assert any(rest.startswith(stop) for stop in stops) or rest == ""


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    letters = {1: "a", 2: "S", 3: "T", 4: "O", 5: "P"}
    spell = lambda ids: "".join(letters[i] for i in ids)  # noqa: E731
    assert pieces([1, 2, 3, 4, 1], ["STOP"], spell) == ["a", "", "", "", "STOa", ""]
    assert pieces([1, 2, 3, 4, 5], ["STOP"], spell) == ["a", "", "", "", ""]
    assert pieces([1, 2, 3], ["STOP"], spell) == ["a", "", "", "ST"]


@pytest.mark.parametrize("text", ["naïve café", "漢字かな", "👩‍🚀 and 🇫🇷"])
def test_real_text_arrives_whole(text: str) -> None:
    assert "".join(pieces(TOKENIZER(text, add_special_tokens=False)["input_ids"])) == text


@given(st.text(max_size=60))
def test_the_bytes_of_the_tokens_are_those_of_the_text(text: str) -> None:
    """A character of several tokens is nobody's alone: OpenAI's clients put the bytes together."""
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    told = [bytes_of(TOKENIZER.decode([i]), TOKENIZER.convert_ids_to_tokens(i)) for i in ids]
    assert b"".join(told) == text.encode()


def test_bytes_as_sentencepiece_writes_them() -> None:
    pieces = ["\u2581a", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    texts = ["a", *[REPLACEMENT] * 4]
    assert b"".join(map(bytes_of, texts, pieces)) == "a😀".encode()
