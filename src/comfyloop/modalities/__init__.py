"""What a message may hold: what is valid, what a person is shown of it, what a model is given. A file a kind.

Everything that reads rows, sends messages to engines or lays them before a template asks here, so that what one door
takes for a picture the others do, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfyloop.declared import declared
from comfyloop.modalities._modality import Modality, Part
from comfyloop.modalities.image import ImagePart
from comfyloop.modalities.text import TextPart

MODALITIES: dict[str, Modality] = declared(__name__, Modality)
TEXT, IMAGE = MODALITIES["text"], MODALITIES["image"]


def of_type(type: Any) -> Modality | None:
    """The modality of a part by its `type`, as whichever tool writes it."""
    return next((modality for modality in MODALITIES.values() if type in modality.types), None)


def slots(parts: Sequence[str | None]) -> list[dict[str, str]]:
    """Parts for a chat template: texts, and None where a picture stands."""
    return [(IMAGE if part is None else TEXT).slot(part) for part in parts]


def asked(text: str, image_urls: Sequence[str]) -> list[dict[str, Any]]:
    """The content of a question about pictures, as OpenAI's API has it."""
    return [*map(IMAGE.wire, image_urls), TEXT.wire(text)]


__all__ = [
    "IMAGE",
    "MODALITIES",
    "TEXT",
    "ImagePart",
    "Modality",
    "Part",
    "TextPart",
    "asked",
    "of_type",
    "slots",
]
