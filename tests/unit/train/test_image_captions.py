"""Captions count as ComfyUI counts them: brackets, weights, escaped brackets, embeddings that are not there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.stable_diffusion.emphasis import pieces_of, windows_of
from comfyloop.train.image import checkpoint
from comfyloop.train.image.text import Captions, weighted_tokens

EXAMPLES = [
    ("a red fox", [("a red fox", 1.0)]),
    ("a (red:1.3) fox", [("a ", 1.0), ("red", 1.3), (" fox", 1.0)]),
    ("a (red) fox", [("a ", 1.0), ("red", 1.1), (" fox", 1.0)]),
    ("((red))", [("red", 1.1 * 1.1)]),
    ("(a (blue:0.5) sky)", [("a ", 1.1), ("blue", 0.5), (" sky", 1.1)]),
    (r"a \(wide\) shot", [("a (wide) shot", 1.0)]),
    (r"(a \(wide\) shot:1.2)", [("a (wide) shot", 1.2)]),
    ("(time 12:30)", [("time 12", 30.0)]),
    ("(red:very)", [("red:very", 1.1)]),
    ("(red:nan)", [("red:nan", 1.1)]),
    ("(:1.3)", [(":1.3", 1.1)]),
    ("(red", [("(red", 1.0)]),
    ("red)", [("red)", 1.0)]),
    ("a fox, embedding:x, red", [("a fox, ", 1.0), (", red", 1.0)]),
    ("embedding:x", []),
    ("(embedding:x fox:0.8)", [("fox", 0.8)]),
    ("not_embedding:x", [("not_embedding:x", 1.0)]),
    ("", []),
]


@pytest.mark.parametrize(("prompt", "pieces"), EXAMPLES)
def test_a_prompt_is_cut_at_its_brackets(prompt: str, pieces: list[tuple[str, float]]) -> None:
    assert pieces_of(prompt) == pieces


@given(st.text(st.sampled_from("()\\: ab1.")))
def test_no_letter_is_lost_and_none_is_made(prompt: str) -> None:
    said = "".join(text for text, _ in pieces_of(prompt))
    assert said.count("a") == prompt.count("a") and said.count("b") == prompt.count("b")


def test_many_brackets_take_no_time() -> None:
    began = time.process_time()
    for prompt in ("(" * 20_000 + ")" * 20_000, "(" * 40_000, "(a:1)" * 8_000, "embedding:" * 4_000):
        pieces_of(prompt)
    assert time.process_time() - began < 5


def test_a_short_group_goes_to_the_next_window_whole() -> None:
    groups = [[(n, 1.0) for n in range(70)], [(n, 1.2) for n in range(7)], [(n, 1.0) for n in range(80)]]
    windows = windows_of(groups, 75)
    assert [len(window) for window in windows] == [70, 75, 12]
    assert windows[1][0] == (0, 1.2)


@torch.no_grad()
def test_a_weight_is_the_distance_from_no_text(tiny_sd15: Path) -> None:
    model = checkpoint.load(tiny_sd15)
    captions = Captions(model, None)
    encoder = model.text_encoders[0]
    assert [len(w) for w in weighted_tokens(encoder, "a (red:1.3) fox")] == [3]
    plain, empty = captions.of("a red fox").states, captions.of("").states
    weighted = captions.of("a (red:1.3) fox").states
    expected = plain.clone()
    expected[0, 2] = empty[0, 2] + (plain[0, 2] - empty[0, 2]) * 1.3
    torch.testing.assert_close(weighted, expected)
    torch.testing.assert_close(captions.of("a (red) fox").states, captions.of("a (red:1.1) fox").states)
    torch.testing.assert_close(captions.of(r"a \(red\) fox").states[0, :3].shape, plain[0, :3].shape)
    assert torch.equal(captions.of("embedding:x a red fox").states, plain)
    long = captions.of("fox " * 74 + "(a red fox:0.5)").states
    assert long.shape == (1, 154, 768)
