"""Converts records to ms-swift's rows, and what its template receives back to records.

In its rows every message is a text and ``<image>`` stands for a picture; such a tag cannot be escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comfyloop.formats.record import IMAGE_TAG, Row, Turn, picture_of

_TAGS = re.compile(r"<(?:image|video|audio|bbox|ref-object|cot-process)>")


def to_swift(row: Row, images: Sequence[str]) -> dict[str, Any]:
    """A row's content, with these names for its pictures."""
    fields: dict[str, Any] = {"messages": [_message(turn) for turn in row.turns]}
    if images:
        fields["images"] = list(images)
    if row.rejected is not None:
        fields["rejected_response"] = row.rejected
    if row.label is not None:
        fields["label"] = row.label
    return fields


def _message(turn: Turn) -> dict[str, Any]:
    said = "".join(IMAGE_TAG if part is None else part for part in turn.parts)
    return {"role": turn.role, "content": said} | ({} if turn.learn else {"loss": False})


def quoted_tag(row: Row) -> str:
    """The first tag in a row's text, which ms-swift would interpret; "" if there is none."""
    for text in (*(part for turn in row.turns for part in turn.parts if part), row.rejected or ""):
        if tag := _TAGS.search(text):
            return tag[0]
    return ""


def of_swift(messages: Sequence[Mapping[str, Any]], system: str | None, images: Sequence[str]) -> Row:
    """The turns of a row that `to_swift` wrote, as ms-swift's template receives it."""

    def turn(role: str, content: str, learn: bool = True) -> Turn:
        return Turn(role, content if images else (content,), learn)

    turns = [turn(m["role"], m["content"], m.get("loss") is not False) for m in messages]
    if system is not None:
        turns.insert(0, turn("system", system))
    return Row(0, "", tuple(turns), tuple(map(picture_of, images)))
