"""A message of a record as OpenAI's API has it, which is how engines are spoken to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfyloop.modalities import MODALITIES
from comfyloop.records import Message, TextPart


def wire_message(message: Message, url: Callable[[str], str]) -> dict[str, Any]:
    """
    Args:
        url: From the SHA-256 of a part's bytes to a URL that the engine can read.
    """
    if all(isinstance(part, TextPart) for part in message.content):
        return {"role": message.role, "content": message.text}
    content = [
        MODALITIES[part.type].wire(part.text if isinstance(part, TextPart) else url(part.sha256))
        for part in message.content
    ]
    return {"role": message.role, "content": content}
