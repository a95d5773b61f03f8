"""A cut keeps what a picture shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from comfyloop.media import subject

CAT = Path(__file__).parents[1] / "integration" / "chelsea.jpg"


def scene(number: int, left: int, top: int, width: int) -> Image.Image:
    """A ball, or a cat's head, somewhere on a ground with noise."""
    drawn = np.random.default_rng(number)
    ground = np.full((400, 900, 3), drawn.integers(60, 256, 3), dtype=np.float32)
    ground += drawn.normal(0, drawn.choice([0, 6, 12]), ground.shape)
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    mask = Image.new("L", (width, width))
    ImageDraw.Draw(mask).ellipse([0, 0, width, width], fill=255)
    with Image.open(CAT) as cat:
        head = cat.convert("RGB").crop((120, 30, 380, 290)).resize((width, width))
    ball = Image.new("RGB", (width, width), (190, 30, 40))
    picture.paste(head if number % 2 else ball, (left, top), mask)
    return picture


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("left", [0, 620])
def test_a_cut_keeps_the_whole_subject_where_the_middle_would_cut_it(number: int, left: int) -> None:
    width = 150 + 10 * number
    picture = scene(number, left, 80, width)
    begin, top = subject.corner(subject.weights(picture), picture.size, (400, 400))
    assert top == 0 and begin <= left and left + width <= begin + 400


def test_of_an_even_picture_the_middle_is_kept() -> None:
    even = Image.new("RGB", (900, 400), "#408060")
    assert subject.corner(subject.weights(even), even.size, (400, 400)) == (250, 0)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32), st.data())
def test_a_cut_lies_within_the_picture(width: int, height: int, seed: int, data: st.DataObject) -> None:
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    seen = subject.weights(Image.fromarray(drawn))
    assert seen.sum() == pytest.approx(1) and (seen >= 0).all()
    size = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    left, top = subject.corner(seen, (width, height), size)
    assert 0 <= left <= width - size[0] and 0 <= top <= height - size[1]
