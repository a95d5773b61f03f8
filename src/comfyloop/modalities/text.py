"""What is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from comfyloop.modalities._modality import Modality, Part


class TextPart(Part):
    type: Literal["text"] = "text"
    text: str

    @property
    def model_input(self) -> str:
        return self.text


def read(part: Mapping[str, Any]) -> str:
    if not isinstance(text := part["text"], str):
        raise TypeError
    return text


MODALITY = Modality(
    "text",
    does="what is written",
    part=TextPart,
    example=TextPart(text="What is this?"),
    types=("text", "input_text", "output_text"),
    read=read,
)
