"""A message of a record as OpenAI's API has it, which is how engines are spoken to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfyloop.modalities import MODALITIES, TEXT
from comfyloop.records import Message, Part


def wire_message(message: Message, url: Callable[[str], str]) -> dict[str, Any]:
    """
    Args:
        url: From the SHA-256 of a part's bytes to a URL that the engine can read.
    """
    if all(part.model_input is not None for part in message.content):
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [_wire(part, url) for part in message.content]}


def _wire(part: Part, url: Callable[[str], str]) -> dict[str, Any]:
    text = part.model_input
    return TEXT.wire(text) if text is not None else MODALITIES[part.type].wire(url(part.blob))
