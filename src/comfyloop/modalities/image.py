"""Pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyloop.modalities._modality import Modality


def read(part: Mapping[str, Any]) -> Any:
    sources = [part[key] for key in ("image_url", "image", "url", "path") if part.get(key) is not None]
    source = sources[0] if sources else None
    return source.get("url", source) if isinstance(source, dict) else source


MODALITY = Modality(
    "image",
    types=("image_url", "image", "input_image"),
    read=read,
    wire=lambda url: {"type": "image_url", "image_url": {"url": url}},
    slot=lambda _: {"type": "image"},
)
