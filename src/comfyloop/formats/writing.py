"""Converts records to rows that `read` reads back to the same record, and that ms-swift understands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfyloop.formats.image_rows import as_json
from comfyloop.formats.record import IMAGE_TAG, Row, Turn
from comfyloop.modalities import slots


def to_json(
    row: Row, images: Sequence[str], chosen: str | None = None, rejected: str | None = None
) -> dict[str, Any]:
    """A row's content, with these names for its pictures.

    A text that contains an image tag is written in parts, where it stays text; ms-swift does not support this.
    """
    fields: dict[str, Any] = {"messages": [_message(turn) for turn in row.turns]}
    if images:
        fields["images"] = list(images)
    if row.rejected is not None:
        fields["rejected_response"] = _rejected(row.rejected)
    if row.label is not None:
        fields["label"] = row.label
    if chosen is not None:
        fields["chosen"] = as_json(chosen)
    if rejected is not None:
        fields["rejected"] = as_json(rejected)
    return fields


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": _content(turn.parts)}
    return message if turn.learn else message | {"loss": False}


def _content(parts: Sequence[str | None]) -> str | list[dict[str, str]]:
    if not any(part is not None and IMAGE_TAG in part for part in parts):
        return "".join(IMAGE_TAG if part is None else part for part in parts)
    return slots(parts)


def _rejected(text: str) -> str | list[dict[str, Any]]:
    content = _content([text])
    return content if isinstance(content, str) else [{"role": "assistant", "content": content}]
