"""A cut keeps what a picture shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from comfyloop.cli import app
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


def test_how_pictures_will_be_cut_is_shown_and_nothing_is_changed(tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "crops"
    folder.mkdir()
    wide = Image.new("RGB", (2000, 400), "#c8c0b0")  # wider than any size that models draw
    wide.paste("#b01020", (1700, 100, 1900, 300))
    wide.save(folder / "wide.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def kept(*more: str) -> list[int]:
        asked = ["data", "crop", str(folder), "--out", str(out), "--json", *more]
        done = CliRunner().invoke(app, asked)
        (told,) = json.loads(done.stdout)
        assert done.exit_code == 1 and "broken.png" in done.stderr and told["size"] == [2000, 400]
        box: list[int] = told["kept"]
        return box

    assert kept("--by", "middle")[2] < 1700
    left, top, right, bottom = kept()
    assert 0 < left <= 1700 and right >= 1900 and (top, bottom) == (0, 400)
    with Image.open(out / "wide.jpg") as drawn:
        assert drawn.getpixel((10, 100))[0] < 100 < drawn.getpixel((left // 2 + 40, 100))[0]  # type: ignore[index]
    refused = CliRunner().invoke(app, ["data", "crop", str(folder), "--out", str(folder)])
    assert refused.exit_code and "among the pictures" in refused.output + str(refused.exception)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32), st.data())
def test_a_cut_lies_within_the_picture(width: int, height: int, seed: int, data: st.DataObject) -> None:
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    seen = subject.weights(Image.fromarray(drawn))
    assert seen.sum() == pytest.approx(1) and (seen >= 0).all()
    size = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    left, top = subject.corner(seen, (width, height), size)
    assert 0 <= left <= width - size[0] and 0 <= top <= height - size[1]
