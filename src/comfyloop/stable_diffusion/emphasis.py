"""What ComfyUI's prompts say beyond their words: ``(more)``, ``(this much:1.3)``, ``\\(plain\\)``, ``embedding:name``.

A text in round brackets counts 1.1 times as much as what is around it, or as much as the number after its last
colon says; a backslash makes a bracket a letter. An embedding is a file of ComfyUI's: where it is not there ComfyUI
passes over its name, and so does a trainer, which never has it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

MORE = 1.1
DEEPEST = 100
"""Brackets within brackets; what is nested deeper is text."""
_EMBEDDING = re.compile(r"(?:^|(?<=\s))embedding:(?P<name>[^\s<\[]*)")
_OPEN, _CLOSE = "\0o", "\0c"  # escaped brackets, while the others are looked for

Piece = tuple[str, float]
"""A text and how much it counts."""


def pieces_of(prompt: str) -> list[Piece]:
    """The texts of a prompt, each to be tokenised by itself, with their weights."""
    escaped = prompt.replace("\0", "").replace("\\)", _CLOSE).replace("\\(", _OPEN)
    found: list[Piece] = []
    for text, weight in _weighted(escaped):
        plain = text.replace(_CLOSE, ")").replace(_OPEN, "(")
        found += [(part, weight) for part in _without_embeddings(plain) if part]
    return found


def _weighted(text: str) -> Iterator[Piece]:
    waiting = [(text, 1.0, 0)]
    while waiting:
        text, weight, depth = waiting.pop()
        if depth < 0:
            yield text, weight
            continue
        for part in reversed(list(_outermost(text))):
            if _is_bracketed(part) and depth < DEEPEST:
                waiting.append((*_opened(part, weight), depth + 1))
            else:
                waiting.append((part, weight, -1))


def _outermost(text: str) -> Iterator[str]:
    """The text cut before and after each outermost pair of brackets."""
    depth, start = 0, 0
    for place, char in enumerate(text):
        if char == "(":
            if depth == 0 and place > start:
                yield text[start:place]
                start = place
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                yield text[start : place + 1]
                start = place + 1
    if start < len(text):
        yield text[start:]


def _is_bracketed(text: str) -> bool:
    return len(text) >= 2 and text[0] == "(" and text[-1] == ")"


def _opened(text: str, weight: float) -> Piece:
    inner = text[1:-1]
    said, colon, number = inner.rpartition(":")
    if colon and said:
        try:
            given = float(number)
        except ValueError:
            given = math.nan
        if math.isfinite(given):
            return said, given
    return inner, weight * MORE


def _without_embeddings(text: str) -> list[str]:
    parts, end = [], 0
    for found in _EMBEDDING.finditer(text):
        parts.append(text[end : found.start()])
        end = found.end()
        name = found["name"]
        end -= len(name) - len(name.rstrip(","))  # a comma after the name is text
    return [*parts, text[end:].lstrip() if parts else text]


def windows_of(groups: Sequence[Sequence[tuple[int, float]]], size: int) -> list[list[tuple[int, float]]]:
    """Weighted tokens as windows of at most `size`: a short group that does not fit goes to the next one whole."""
    windows: list[list[tuple[int, float]]] = [[]]
    for group in groups:
        rest = list(group)
        while rest:
            room = size - len(windows[-1])
            if len(rest) <= room:
                windows[-1] += rest
                break
            if len(group) >= LONG_GROUP:
                windows[-1] += rest[:room]
                rest = rest[room:]
            windows.append([])
    return windows


LONG_GROUP = 8
"""Tokens from which a group is cut at the end of a window."""
