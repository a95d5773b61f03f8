"""The person's taste as a measure of what two versions drew."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from comfyloop.train.image.rows import PictureRow, picture_at
from comfyloop.train.judge.judge import Notes, by_taste
from comfyloop.train.judge.scorer import ModelViewer
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.specs.judge import picture_file


def painted(place: Path, red: int, blue: int) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 32), (red, 90, blue)).save(place)
    return place


def pair(folder: Path, number: int, caption: str = "a thing") -> PictureRow:
    """A warm picture that was picked over a cold one."""
    warm = painted(folder / f"warm{number}.png", 180 + number, 40)
    cold = painted(folder / f"cold{number}.png", 40, 180 + number)
    return PictureRow(number, f"s{number}", caption, picture_at(warm), picture_at(cold))


@pytest.mark.parametrize("looks", ["alone", "with the model's eyes"])
def test_what_pleases_more_is_measured_once_the_taste_is_known(
    looks: str, tiny_vlm: Path, tmp_path: Path
) -> None:
    scorer = None if looks == "alone" else ModelViewer(str(tiny_vlm), "float32")
    control = Control(RunDirectory(tmp_path), lambda held: None)
    drawings, drawn = tmp_path / "drawn", [pair(tmp_path, 100)]
    painted(picture_file(drawings, 0, "s100"), 50, 170)
    painted(picture_file(drawings, 1, "s100"), 170, 50)
    for pairs, known in ((3, False), (6, True)):
        notes = Notes(tmp_path / "notes.jsonl")
        sentence = by_taste(
            scorer, drawn, [pair(tmp_path, n) for n in range(pairs)], drawings, notes, control
        )
        assert sentence.startswith("Your taste is known") == known
        found = notes.both().get("s100", {})
        assert ("taste" in found) == known
    live, candidate = found["taste"]
    assert candidate > 0 > live


def test_pairs_of_one_pick_are_one_choice(tmp_path: Path) -> None:
    control = Control(RunDirectory(tmp_path), lambda held: None)
    first = pair(tmp_path, 0)
    others = [
        PictureRow(n, f"o{n}", first.caption, first.chosen, pair(tmp_path, n).rejected) for n in range(1, 6)
    ]
    told = by_taste(None, [], [first, *others], tmp_path, Notes(tmp_path / "notes.jsonl"), control)
    assert "1 comparison, at least 4" in told
