"""What a set has much and little of, in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from comfyloop.curate.coverage import coverage
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.curate.seen import SeenPictures
from comfyloop.records import Message
from comfyloop.settings import Settings
from comfyloop.store import Blobs
from tests.unit.curate.test_curate_filters_pictures import put

NOTHING: Any = None


def draft(number: int, answer: str, images: Sequence[str] = ()) -> Draft:
    messages = (Message.of("user", f"Picture {number}?", images), Message.of("assistant", answer))
    return Draft(make("sft", messages, Source("acme", (f"fb_{number}",), "answer_edited", "ada")))


def told(answers: Sequence[str], images: Sequence[str] = (), ground: Ground | None = None) -> list[str]:
    drafts = [
        draft(n, answer, images[n % len(images) :][:1] if images else ()) for n, answer in enumerate(answers)
    ]
    return coverage(drafts, ground or Ground(Settings(), NOTHING))


def test_what_is_never_shown_is_said(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path))
    images = [put(blobs, Image.new("RGB", (64, 64 + n), "red")) for n in range(3)]
    views = ["from the front", "from the side", "from above", "close-up", "from afar"]
    sentences = told(
        [f"The lamp, {views[n % 5]}." for n in range(15)], images, Ground(Settings(), SeenPictures(blobs))
    )
    assert "No picture is said to be from behind." in sentences
    assert "No picture is said to be from the side." not in sentences
    assert "No picture is wide." in sentences and "No picture is square." not in sentences
    assert "3 of 3 pictures are smaller than 256 pixels." in sentences


def test_where_nothing_is_said_of_framings_none_is_missed(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path))
    image = put(blobs, Image.new("RGB", (64, 64), "red"))
    sentences = told([f"Lamp {n}." for n in range(15)], [image], Ground(Settings(), SeenPictures(blobs)))
    assert not any("is said to be" in sentence for sentence in sentences)


def test_subjects_lengths_and_languages() -> None:
    answers = [
        f"Made slowly: a {noun}." for noun in ["lamp"] * 8 + ["vase"] * 3 + ["rug"] + ["bowl"] * 17
    ] + ["一个碗"]
    sentences = told(answers)
    assert "Much is about lamp (8), vase (3), of 30." in sentences  # what most have is the style
    assert any(sentence.startswith("3 words come once only") for sentence in sentences)
    assert "Only 1 of 30 answers are Chinese." in sentences
    assert any(sentence.startswith("All answers are about as long") for sentence in sentences)


def test_a_set_that_only_begins_is_not_judged() -> None:
    assert told(["A lamp."] * 5) == []
