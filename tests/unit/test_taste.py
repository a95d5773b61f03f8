"""A planted taste is found from few comparisons; one who tosses a coin has none."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw

from comfyloop.media.looks import looks
from comfyloop.taste import LEAST, Comparison, Vector, learn, ranked

Likes = Callable[[Image.Image], float]


def picture(chance: random.Random) -> Image.Image:
    """Discs on a ground, of any colours, sizes and number."""

    def colour() -> tuple[int, int, int]:
        return chance.randrange(256), chance.randrange(256), chance.randrange(256)

    image = Image.new("RGB", (96, 96), colour())
    draw = ImageDraw.Draw(image)
    for _ in range(chance.randrange(1, 9)):
        x, y, r = chance.randrange(96), chance.randrange(96), chance.randrange(6, 40)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour())
    return image


def mean_of(image: Image.Image) -> Vector:
    values: Vector = np.asarray(image, dtype=np.float64).mean((0, 1)) / 255
    return values


TASTES: dict[str, Likes] = {
    "warm": lambda image: float(mean_of(image)[0] - mean_of(image)[2]),
    "dark": lambda image: -float(mean_of(image).sum()),
    "plain": lambda image: -float(np.abs(np.diff(np.asarray(image.convert("L"), dtype=np.float64))).mean()),
}


@cache
def pool() -> list[tuple[Vector, dict[str, float]]]:
    """Pictures as they are seen, and how much they are liked by taste."""
    chance = random.Random(0)
    pictures = [picture(chance) for _ in range(400)]
    return [(looks(image), {name: likes(image) for name, likes in TASTES.items()}) for image in pictures]


def compared(chance: random.Random, name: str, choices: int, of: int = 2) -> list[Comparison]:
    """So many picks of one from some pictures; "coin": by chance."""
    found = []
    for choice in range(choices):
        shown = chance.sample(pool(), of)
        if name != "coin":
            shown.sort(key=lambda seen: -seen[1][name])
        found += [Comparison(shown[0][0], other, choice) for other, _ in shown[1:]]
    return found


@pytest.mark.parametrize(("choices", "of", "least"), [(4, 2, 0.7), (8, 2, 0.74), (12, 2, 0.78), (6, 4, 0.78)])
def test_a_planted_taste_is_learnt_from_few_comparisons(choices: int, of: int, least: float) -> None:
    won, known = [], []
    for name in TASTES:
        for seed in range(12):
            chance = random.Random(f"{name} {seed}")
            taste = learn(compared(chance, name, choices, of))
            known.append(taste.known)
            unseen = compared(chance, name, 30)
            won.append(statistics.fmean(taste.score(one.better) > taste.score(one.worse) for one in unseen))
    assert statistics.fmean(won) >= least
    if choices == 12:
        assert statistics.fmean(known) >= 0.5


@pytest.mark.parametrize(("choices", "of"), [(4, 2), (12, 2), (40, 2), (12, 4)])
def test_who_tosses_a_coin_has_no_taste(choices: int, of: int) -> None:
    known = [learn(compared(random.Random(seed), "coin", choices, of)).known for seed in range(60)]
    assert statistics.fmean(known) <= 0.1  # at most one in sixteen, by chance


def test_under_four_comparisons_nothing_is_known_and_that_is_said() -> None:
    chance = random.Random(1)
    many_pairs_of_three = compared(chance, "warm", LEAST - 1, of=6)
    taste = learn(many_pairs_of_three)
    assert (taste.choices, taste.win_rate, taste.known) == (3, None, False)
    assert "not known yet: 3 comparisons, at least 4 are needed" in taste.sentence
    shown = {name: looks(picture(chance)) for name in "abc"}
    assert list(ranked(taste, shown)) == ["a", "b", "c"]
    assert learn([]).sentence.startswith("Your taste is not known yet: 0 comparisons")


def test_pictures_are_ranked_best_first_and_the_win_rate_is_said() -> None:
    chance = random.Random(2)
    taste = learn(compared(chance, "dark", 24))
    assert taste.known and taste.win_rate is not None and taste.win_rate > 0.7
    assert f"{taste.win_rate:.0%} right" in taste.sentence
    shades = {str(shade): looks(Image.new("RGB", (64, 48), (shade,) * 3)) for shade in (200, 20, 120)}
    assert list(ranked(taste, shades)) == ["20", "120", "200"]


def test_pairs_of_one_choice_count_as_one() -> None:
    """Picking one of six says no more than picking one of two about how sure to be."""
    chance = random.Random(3)
    assert learn(compared(chance, "warm", 5, of=6)).choices == 5


def test_learning_takes_milliseconds() -> None:
    chance = random.Random(4)
    vectors = [chance.random() for _ in range(64)]
    many = [
        Comparison(np.array([chance.random() for _ in vectors]), np.array([chance.random() for _ in vectors]))
        for _ in range(64)
    ]
    began = time.process_time()
    learn(many)
    assert time.process_time() - began < 1.0


def test_contradictions_and_equal_pictures_are_no_error() -> None:
    one, other = looks(Image.new("RGB", (8, 8), "red")), looks(Image.new("RGB", (8, 8), "blue"))
    against = [Comparison(one, other), Comparison(other, one)] * 3
    taste = learn(against)
    assert not taste.known and np.isfinite(taste.score(one))
    alike = learn([Comparison(one, one)] * 5)
    assert (alike.win_rate, alike.known) == (0.5, False)
