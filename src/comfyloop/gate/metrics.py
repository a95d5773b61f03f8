"""What is measured on one item."""

from __future__ import annotations

import math
from collections.abc import Sequence

LOG_LIKELIHOOD = "log_likelihood"
"""Mean log-probability of the reference's tokens, in nats; higher is better."""

EDIT_DISTANCE = "edit_distance"
"""Characters to change from the answer to the reference, over the longer one's length: 0 equal, 1 all."""

RIGHT_ANSWER = "right_answer"
"""Chance of the right answer among it and wrong ones, by their likelihood; 0 to 1, higher is better."""

DENOISING_LOSS = "denoising_loss"
"""Mean squared error of what the image model says of a noisy kept picture; lower is better."""

PICK_MARGIN = "pick_margin"
"""By how much more than the untrained model it takes the picked picture of a pair for its own; in units of the
denoising loss, higher is better."""

PICK_ACCURACY = "pick_accuracy"
"""1 where that margin is above zero, 0 where it is below, 0.5 where nothing tells the pictures apart."""

TEXT_SIMILARITY = "text_similarity"
"""How well a drawn picture fits the person's own prompt; higher is better."""

KEPT_SIMILARITY = "kept_similarity"
"""Mean cosine of a drawn picture's features to those of kept pictures; higher is better."""

TASTE = "taste"
"""What the person's picks and ratings say of a drawn picture: log odds that it is liked, higher is better."""

LOWER_IS_BETTER = frozenset({EDIT_DISTANCE, DENOISING_LOSS})


def log_likelihood(logprobs: Sequence[float]) -> float:
    """The mean over tokens.

    Raises:
        ValueError: There are no tokens.
    """
    if not logprobs:
        raise ValueError("there are no tokens to take the mean of")
    return sum(logprobs) / len(logprobs)


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


def edit_distance(answer: str, reference: str) -> float:
    """Levenshtein distance of two texts in characters over the longer one's length, 0..1.

    White space at the ends does not count.
    """
    first, second = answer.strip(), reference.strip()
    return levenshtein(first, second) / max(len(first), len(second), 1)


def levenshtein(first: str, second: str) -> int:
    """Insertions, deletions and replacements of one character that turn `first` into `second`.

    G. Myers, "A fast bit-vector algorithm for approximate string matching", JACM 46 (1999), in H. Hyyro's
    form (2003): one bit a character of `first`, a handful of integer operations a character of `second`.
    """
    if not first or not second:
        return len(first) + len(second)
    at: dict[str, int] = {}
    for index, character in enumerate(first):
        at[character] = at.get(character, 0) | 1 << index
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    up, down, distance = every, 0, len(first)  # bits where the column's next entry is one more, one less
    for character in second:
        match = at.get(character, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right, left = down | ~(diagonal | up) & every, up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = right << 1 | 1, left << 1
        up, down = (left | ~(diagonal | right)) & every, right & diagonal & every
    return distance
