"""What a person likes in pictures, learnt from a few comparisons: a Bradley-Terry model with a ridge. Pure.

Of two pictures the one with the higher score is picked with probability sigmoid(difference); a score is linear in
what is seen of a picture. The ridge regularises a model of many features with few comparisons, and a taste counts
as known only if comparisons that it was not fitted to are predicted better than by chance. From as few as four
pairs personal taste can be told: Dang et al., "Personalized Preference Fine-tuning of Diffusion Models"
(2501.06655), where that many examples of a new user win 76% of comparisons. Fitting takes milliseconds: it is done
anew for every question.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST = 4
"""Comparisons; fewer say nothing."""
CHANCE = 1 / 16
"""How often coin tossing may tell as many right as a model does that counts as known: four of four, six of seven."""
RIDGE = 0.05
"""Weight of the squared weights beside the log-likelihood, of differences whose mean square length is one."""
_STEPS = 25

Vector = NDArray[np.float64]


class Comparison(NamedTuple):
    """One picture was liked better than another. Pairs of one `choice` say one thing together."""

    better: Vector
    worse: Vector
    choice: Hashable = None


class Taste(NamedTuple):
    """What is known of a taste.

    Attributes:
        choices: How many comparisons it was learnt from.
        win_rate: Share of them that it tells right when it is fitted to the others alone; None under LEAST.
        known: Whether that is more than chance.
    """

    choices: int
    win_rate: float | None
    known: bool
    mean: Vector
    weights: Vector

    def score(self, picture: Vector) -> float:
        """Higher is liked better; in units of log odds, only differences mean anything."""
        return float((picture - self.mean) @ self.weights)

    @property
    def sentence(self) -> str:
        if self.win_rate is None:
            return f"Your taste is not known yet: {_counted(self.choices)}, at least {LEAST} are needed."
        finding = f"of {_counted(self.choices)} it tells {self.win_rate:.0%} right without having seen them"
        if not self.known:
            return f"Your taste is not known yet: {finding}, as chance might."
        return f"Your taste is known from picks and ratings: {finding}."


def _counted(choices: int) -> str:
    return f"{choices} comparison{'' if choices == 1 else 's'}"


def learn(comparisons: Sequence[Comparison]) -> Taste:
    """A taste from comparisons, and how far it can be trusted."""
    if not comparisons:
        return Taste(0, None, False, np.zeros(0), np.zeros(0))
    mean = np.mean([picture for one in comparisons for picture in (one.better, one.worse)], axis=0)
    rows = np.stack([one.better - one.worse for one in comparisons])
    scale = 1 / max(math.sqrt(float((rows**2).sum(1).mean())), 1e-9)
    rows = rows * scale
    places: dict[Hashable, list[int]] = {}
    for place, one in enumerate(comparisons):
        places.setdefault((place, "alone") if one.choice is None else one.choice, []).append(place)
    shares = np.empty(len(rows))  # each choice weighs one, however many pairs it made
    for members in places.values():
        shares[members] = 1 / len(members)
    weights = _fit(rows, shares) * scale
    if len(places) < LEAST:
        return Taste(len(places), None, False, mean, weights)
    right = [_told_right(rows, shares, members) for members in places.values()]
    win_rate = sum(right) / len(right)
    won = sum(1.0 if share > 0.5 else 0.5 if share == 0.5 else 0.0 for share in right)
    return Taste(len(right), win_rate, _by_chance(math.floor(won), len(right)) <= CHANCE, mean, weights)


def ranked(taste: Taste, pictures: Mapping[str, Vector]) -> dict[str, float]:
    """Scores by picture, the best first; in the order given where the taste is not known, all alike."""
    if not taste.known:
        return dict.fromkeys(pictures, 0.0)
    scores = {name: taste.score(vector) for name, vector in pictures.items()}
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def _told_right(rows: Vector, shares: Vector, members: Sequence[int]) -> float:
    """Share of a choice's pairs that a model fitted to all other choices tells right; half where it cannot say."""
    others = np.setdiff1d(np.arange(len(rows)), members)
    odds = rows[members] @ _fit(rows[others], shares[others])
    return float(np.where(np.abs(odds) < 1e-9, 0.5, odds > 0).mean())


def _fit(rows: Vector, shares: Vector) -> Vector:
    """Weights of the differences `rows`, each of which was liked: Newton's steps in as many unknowns as rows."""
    kernel = rows @ rows.T
    odds = np.zeros(len(rows))
    for _ in range(_STEPS):
        likely = 1 / (1 + np.exp(-odds))
        slope = np.maximum(shares * likely * (1 - likely), 1e-9)
        target = odds + shares * (1 - likely) / slope
        alphas = np.linalg.solve(kernel + np.diag(RIDGE / slope), target)
        moved = kernel @ alphas - odds
        odds = odds + moved
        if np.abs(moved).max() < 1e-8:
            break
    return rows.T @ alphas


def _by_chance(right: int, of: int) -> float:
    """The chance of so many heads or more."""
    return float(sum(math.comb(of, k) for k in range(right, of + 1)) / 2**of)
