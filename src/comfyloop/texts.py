"""Texts as people are shown them."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"(?<!\d)[.!?][\"'”’)]*(?=\s|$)|[.!?]$|[。!?]")


def in_a_line(text: str, most: int = 100) -> str:
    """In one line, its end left out where it has more than `most` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def whole_sentences(text: str) -> str:
    """The text up to its last sentence end, or all of it when it has none: an end made by a length limit is none.

    An answer that a token limit cut off would teach the model to stop in the middle of a sentence.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text.strip())]
    return text.strip()[: ends[-1]] if ends else text.strip()
