"""What can be counted in an answer, at one reading: several filters go by it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft

MOST_CHARS = 20_000
"""Characters of an answer that are looked at."""

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
KANA = re.compile(r"[\u3040-\u30ff]")
HANGUL = re.compile(r"[\u1100-\u11ff\uac00-\ud7af]")
UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:['’-][^\W_{UNSPACED}]+)*")
_PIECE = re.compile(r"[,，、;；|#\n]+")

SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at by to for with and or from is are was be it its this that i you he she they we his her"
        " their as not there has have which who what",
    )
)


class TextCounts(NamedTuple):
    chars: int
    words: int  # of unspaced writing, characters
    small: int  # words that hold a sentence together
    pieces: int  # what commas, marks and line ends part
    characters_again: (
        float  # share of the text in the 10-grams of characters that come most often, more than once
    )
    words_again: float  # share of the 5-grams of words that come more than once
    words_own: float  # different words, of all


def words(text: str) -> list[str]:
    """In lower case; of writing without spaces, the characters."""
    return _WORD.findall(text[:MOST_CHARS].casefold())


def counted(ground: Ground, drafts: Sequence[Draft]) -> list[TextCounts]:
    """Of the drafts' answers."""
    new = [draft for draft in drafts if "counts" not in draft.noted]
    for draft, told in zip(new, ground.measurements.of_samples("texts/1", new, _count), strict=True):
        draft.noted["counts"] = TextCounts(*told)
    return [draft.noted["counts"] for draft in drafts]


def _count(drafts: Sequence[Draft]) -> Iterator[TextCounts]:
    return (counts(draft.sample.answer) for draft in drafts)


def counts(text: str) -> TextCounts:
    found = words(text)
    text = " ".join(text[:MOST_CHARS].split())
    return TextCounts(
        len(text),
        len(found),
        sum(word in SMALL for word in found),
        sum(bool(piece.strip()) for piece in _PIECE.split(text)),
        round(_most_often([text[i : i + 10] for i in range(len(text) - 9)]), 3),
        round(_again([tuple(found[i : i + 5]) for i in range(len(found) - 4)]), 3),
        round(len(set(found)) / max(1, len(found)), 3),
    )


def _most_often(grams: Sequence[Hashable]) -> float:
    """Share that the sqrt(n) most frequent ones make up, of those that come twice at least."""
    most = Counter(grams).most_common(int(len(grams) ** 0.5))
    return sum(count for _, count in most if count > 1) / max(1, len(grams))


def _again(grams: Sequence[Hashable]) -> float:
    return sum(count for count in Counter(grams).values() if count > 1) / max(1, len(grams))
