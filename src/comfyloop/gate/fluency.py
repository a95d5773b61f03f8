"""Whether an answer is still fluent, measured without a model: repetition, length, word order. Pure.

Learning the vocabulary alone improves likelihood, and the right words in any order reduce the edit distance. Such
answers fail these checks, which ask a person and never reject by themselves.
"""

from __future__ import annotations

import hashlib
import random
import re

_PIECE = re.compile(r"[㐀-鿿豈-﫿぀-ヿ]|[^\W_㐀-鿿豈-﫿぀-ヿ]+")
_FEW = 6
"""Words below which nothing can be said about repetition."""


def words(text: str) -> list[str]:
    """Words in lower case; of scripts without spaces, characters."""
    return _PIECE.findall(text.lower())


def distinct(text: str, size: int = 2) -> float:
    """The share of distinct n-grams of words, 0..1; 1 if there is no n-gram.

    J. Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", NAACL 2016.
    """
    pieces = words(text)
    grams = [tuple(pieces[i : i + size]) for i in range(len(pieces) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_run(text: str) -> int:
    """The length of the longest run of one repeated word."""
    longest = run = 0
    before = None
    for piece in words(text):
        run = run + 1 if piece == before else 1
        longest, before = max(longest, run), piece
    return longest


def fault(answer: str, wanted: str) -> str | None:
    """The fault of an answer, compared with the wanted text: "empty", "repeating", "too long" or None."""
    if not words(answer):
        # an answer of signs alone is an answer where signs were wanted
        return "empty" if words(wanted) or (wanted.strip() and not answer.strip()) else None
    pieces = len(words(answer))
    if pieces >= _FEW and distinct(answer) < 0.6 * distinct(wanted):
        return "repeating"
    if longest_run(answer) >= max(3, longest_run(wanted) + 2):
        return "repeating"
    if len(answer) > 2 * len(wanted) + 20:
        return "too long"
    return None


def shuffled(text: str) -> str | None:
    """The same words in another order, always the same one for the same text; None where there are too few.

    Punctuation stays with its word. Text without spaces is taken by the character.
    """
    by_space = text.split()
    pieces, gap = (by_space, " ") if len(by_space) >= 4 else (list(text.strip()), "")
    if len(pieces) < 4 or len(set(pieces)) < 3:
        return None
    if gap == "" and not any(ord(character) > 0x2E80 for character in pieces):
        return None  # a few words of an alphabet: letters in another order say nothing about words
    order = random.Random(hashlib.sha256(text.encode()).hexdigest())
    mixed = list(pieces)
    for _ in range(10):
        order.shuffle(mixed)
        if mixed != pieces:
            return gap.join(mixed)
    return None
