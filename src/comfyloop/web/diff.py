"""What changed between two texts, word by word; of Chinese and Japanese character by character. Pure."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

_CHARACTER = r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
_WORD = rf"(?:(?!{_CHARACTER})\w)+"
_TOKENS = re.compile(rf"{_CHARACTER}|{_WORD}(?:['’]{_WORD})*|\s+|[^\w\s]")
_MOST = 4000
"""Tokens of both texts together; longer ones are shown as wholly changed, since the comparison takes their product."""

Kind = Literal["same", "out", "in"]


class DiffPiece(NamedTuple):
    kind: Kind
    text: str


def words_apart(before: str, after: str) -> list[DiffPiece]:
    """The pieces of both texts in order: what stayed, what went out, what came in."""
    old, new = _TOKENS.findall(before), _TOKENS.findall(after)
    if len(old) + len(new) > _MOST:
        return (
            [DiffPiece("same", before)]
            if before == after
            else [DiffPiece("out", before), DiffPiece("in", after)]
        )
    runs = [
        (tag == "equal", "".join(old[i:j]), "".join(new[k:m]))
        for tag, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    ]
    pieces: list[DiffPiece] = []
    gone = came = ""
    for place, (same, before_run, after_run) in enumerate(runs):
        # a space between two changes is part of them: one change is easier to read than a salad of words
        if not same or (not before_run.strip() and 0 < place < len(runs) - 1):
            gone, came = gone + before_run, came + after_run
            continue
        pieces += _change(gone, came)
        pieces.append(DiffPiece("same", before_run))
        gone = came = ""
    return [*pieces, *_change(gone, came)]


def _change(gone: str, came: str) -> list[DiffPiece]:
    return [DiffPiece("out", gone)] * bool(gone) + [DiffPiece("in", came)] * bool(came)
