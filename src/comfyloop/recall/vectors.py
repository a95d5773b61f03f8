"""Texts as vectors, without a model: words, their order and the letters in them, hashed.

Two questions are similar if they are phrased alike ("Write a caption for a mug", "... for a lamp"), since then an
answer to one shows how to answer the other. Down-weighting what many edits share (IDF) would do the opposite: in a
project whose questions all have the same form, only the nouns would count, and nothing would be found.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

DIMS = 1024
LONGEST = 1000
"""Characters of a text that are looked at; of a longer one, half of them from each end."""

Vector = NDArray[np.float32]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_RUNS = re.compile(rf"([{_CJK}]+)|([^\W_{_CJK}]+)")
_FUNCTION_WORDS = re.compile(
    r"a|an|the|is|are|was|of|for|in|on|to|do|does|did|i|you|my|your|it|this|that|what|how|and|or|with|me|we|can|be"
)


def vector(text: str) -> Vector:
    """A unit vector of DIMS floats, all zero for a text without letters or digits."""
    values = np.zeros(DIMS, np.float32)
    for feature, weight in _features(_clipped(text)):
        code = zlib.crc32(feature.encode("utf-8", "surrogatepass"))
        values[code % DIMS] += weight if code & (1 << 20) else -weight
    length = float(np.linalg.norm(values))
    return values / np.float32(length) if length else values


def content(text: str) -> set[str]:
    """The words of a text that carry its meaning: without function words; of Chinese, pairs of characters."""
    words: set[str] = set()
    for match in _RUNS.finditer(_clipped(text)):
        run = match[0]
        if match[1]:
            words.update(run[i : i + 2] for i in range(max(1, len(run) - 1)))
        elif not _FUNCTION_WORDS.fullmatch(run):
            words.add(run)
    return words


def _clipped(text: str) -> str:
    if len(text) > LONGEST:
        text = text[: LONGEST // 2] + " " + text[-LONGEST // 2 :]
    return unicodedata.normalize("NFKC", text).casefold()


def _features(text: str) -> Iterator[tuple[str, float]]:
    """Features of a text in lower case; one that comes twice counts sqrt(2) times, not twice."""
    counts: dict[str, float] = {}
    before = "^"
    for match in _RUNS.finditer(text):
        run = match[0]
        if match[1]:  # Chinese, Japanese, Korean: no spaces between words
            features = [(run[i : i + 2], 1.0) for i in range(len(run) - 1)] + [
                (letter, 0.7) for letter in run
            ]
        else:
            share = 0.5 if _FUNCTION_WORDS.fullmatch(run) else 1.0
            letters = f"<{run}>"
            features = [(letters[i : i + 3], 0.7 * share) for i in range(len(letters) - 2)]
            features += [(f"={run}", 1.5 * share), (f"{before} {run}", 0.7)]
        before = run
        for feature, weight in features:
            counts[feature] = counts.get(feature, 0.0) + weight
    for feature, weight in counts.items():
        yield feature, weight**0.5
