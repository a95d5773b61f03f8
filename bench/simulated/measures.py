"""What is measured of answers: pure functions of texts and numbers."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from comfyloop.gate.metrics import edit_distance

_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+")


def mean(values: Sequence[float]) -> float | None:
    """Rounded to 1e-4; None of nothing."""
    return round(statistics.fmean(values), 4) if values else None


def distances(answers: Sequence[str], wanted: Sequence[str]) -> list[float]:
    return [round(edit_distance(a, w), 4) for a, w in zip(answers, wanted, strict=True)]


def repetition(text: str) -> float:
    """The share of words that only repeat: the word before again, or the end of three words said already, 0..1.

    A Chinese character counts as a word.
    """
    words = [word.lower() for word in _WORD.findall(text)]
    if not words:
        return 0.0
    triples: set[tuple[str, ...]] = set()
    repeated = 0
    for at, word in enumerate(words):
        three = tuple(words[max(0, at - 2) : at + 1])
        repeated += (at > 0 and word == words[at - 1]) or (len(three) == 3 and three in triples)
        triples.add(three)
    return round(repeated / len(words), 4)


def says_one_of(text: str, right: Sequence[str]) -> bool:
    """Whether one of the words, in lower case, is a whole word of the text."""
    said = text.lower()
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said) for word in right)


def worst_step_back(values: Sequence[float]) -> float:
    """By how much at most one value lies above the lowest before it; 0 where they only fall."""
    worst, best = 0.0, values[0] if values else 0.0
    for value in values[1:]:
        worst, best = max(worst, value - best), min(best, value)
    return round(worst, 4)
