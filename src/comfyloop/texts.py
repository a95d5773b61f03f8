"""Text helpers for display."""

from __future__ import annotations

import re
import unicodedata

_SENTENCE_END = re.compile(r"(?<!\d)[.!?][\"'”’)]*(?=\s|$)|[.!?]$|[。!?]")

_SPACES = frozenset("\u00a0\u2007\u202f")
_JOINERS = frozenset("\u200c\u200d")


def in_a_line(text: str, most: int = 100) -> str:
    """In one line, its end left out where it has more than `most` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def is_blank(text: str) -> bool:
    """Nothing that can be seen: white space, zero-width characters, byte order marks."""
    return all(char.isspace() or unicodedata.category(char) in ("Cf", "Cc") for char in text)


def as_seen(text: str) -> str:
    """Without what pasting changes and nobody sees: the kind of spaces and line ends, marks without a width.

    Joiners stay: they make one picture of several emoji, and other letters in Persian.
    """
    plain = "".join(
        " " if char in _SPACES else char
        for char in text.replace("\r\n", "\n")
        if unicodedata.category(char) != "Cf" or char in _JOINERS
    )
    return plain.strip()


def whole_sentences(text: str) -> str:
    """The text up to its last sentence end, or all of it when it has none: an end made by a length limit is none.

    An answer that a token limit cut off would teach the model to stop in the middle of a sentence.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text.strip())]
    return text.strip()[: ends[-1]] if ends else text.strip()
