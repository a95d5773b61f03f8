"""Chance of the right answer among it and wrong ones, by their likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence

from comfyloop.gate.metrics._metric import Metric


def right_answer_of(right: tuple[float, int], wrong: Sequence[tuple[float, int]]) -> float:
    """The chance of the right answer when one of the given ones must be chosen.

    By the mean a token, times the tokens of the shortest: of answers alike but for a word that is the whole
    difference, and a long answer is not unlikelier for being long.

    Args:
        right, wrong: Log-likelihood of the right answer and of each wrong one in nats per token, and its tokens.
    """
    shortest = min(tokens for _, tokens in (right, *wrong))
    heights = [mean * shortest for mean, _ in (right, *wrong)]
    top = max(heights)
    shares = [math.exp(height - top) for height in heights]
    return shares[0] / math.fsum(shares)


METRIC = Metric("right_answer", "chance of the right answer")
