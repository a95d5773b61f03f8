"""What is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyloop.modalities._modality import Modality


def read(part: Mapping[str, Any]) -> str:
    if not isinstance(text := part["text"], str):
        raise TypeError
    return text


MODALITY = Modality(
    "text",
    types=("text", "input_text", "output_text"),
    read=read,
    wire=lambda text: {"type": "text", "text": text},
    slot=lambda text: {"type": "text", "text": text or ""},
)
