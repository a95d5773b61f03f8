"""Picks and ratings as comparisons; the next question knows the pick before it."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from comfyloop.recall import Tastes
from comfyloop.recall.tastes import comparisons
from comfyloop.records import ImagePicked, ImageRated
from comfyloop.store import feedback
from tests.unit.recall.conftest import Taught

A, B, C, D = (letter * 64 for letter in "abcd")


def picked(*over: str, pick: str = A, author: str = "ada") -> ImagePicked:
    return ImagePicked(project="acme", author=author, picked=(pick,), over=over, prompt="a mug")


def rated(image: str, rating: int, prompt: str = "a mug", author: str = "ada") -> ImageRated:
    return ImageRated(project="acme", author=author, image=image, rating=rating, prompt=prompt)


def pairs(*newest_first: object) -> list[tuple[str, str]]:
    return [(one.better, one.worse) for one in comparisons(newest_first)]  # type: ignore[arg-type]


def test_what_feedback_says_of_pairs() -> None:
    assert pairs(picked(B, C)) == [(A, B), (A, C)]
    assert len({one.choice for one in comparisons([picked(B, C)])}) == 1
    assert pairs(picked(A, pick=B), picked(B)) == [(B, A)]  # she changed her mind
    assert pairs(picked(A, pick=B, author="bo"), picked(B)) == [(B, A), (A, B)]
    assert pairs(rated(A, 5), rated(B, 1), rated(C, 3), rated(D, 2)) == [(A, B), (A, D)]
    assert pairs(rated(A, 5), rated(B, 1, "a lamp")) == pairs(rated(A, 5), rated(B, 1, author="bo")) == []
    assert pairs(rated(A, 1), rated(B, 1), rated(A, 5)) == []  # the newer rating of A counts


def stored(taught: Taught, colour: tuple[int, int, int]) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    sha256: str = taught.store.blobs.put(buffer.getvalue(), "image/png")
    return sha256


@pytest.fixture
def tastes(taught: Taught) -> Tastes:
    return Tastes(taught.store, 10**6)


def test_a_person_who_picks_dark_gets_dark_first_and_forgets_what_is_deleted(
    taught: Taught, tastes: Tastes
) -> None:
    chance = random.Random(1)
    shown = [stored(taught, (shade, shade, shade)) for shade in (230, 15, 130)]
    ids = []
    for number in range(6):
        assert list(tastes.rank("acme", shown)[1]) == (
            shown if number < 4 else [shown[1], shown[2], shown[0]]
        )
        light, dark = chance.randrange(150, 256), chance.randrange(100)
        item = picked(stored(taught, (light, light, light)), pick=stored(taught, (dark, dark, dark)))
        taught.add(item)
        ids.append(item.id)
    taste = tastes.of("acme")
    assert (taste.choices, taste.win_rate, taste.known) == (6, 1.0, True)
    with taught.store.begin() as conn:
        feedback.delete(conn, ids[0])
    assert tastes.of("acme").choices == 5


def test_pictures_that_are_gone_or_none_say_nothing_and_come_last(taught: Taught, tastes: Tastes) -> None:
    taught.add(picked(B))
    assert tastes.of("acme").choices == 0
    broken = taught.store.blobs.put(b"no picture", "image/png")
    for shade in range(5):
        taught.add(picked(stored(taught, (200 + shade, 200, 200)), pick=stored(taught, (shade, 0, 0))))
    dark, light = stored(taught, (9, 9, 9)), stored(taught, (222, 222, 222))
    taste, scores = tastes.rank("acme", [broken, light, dark])
    assert taste.known and list(scores) == [dark, light, broken]
