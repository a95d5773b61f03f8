"""Pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import StringConstraints

from comfyloop.modalities._modality import Modality, Part

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ImagePart(Part):
    """An image by the hash of its bytes; the bytes are in the blob store."""

    type: Literal["image"] = "image"
    sha256: Sha256


def read(part: Mapping[str, Any]) -> Any:
    sources = [part[key] for key in ("image_url", "image", "url", "path") if part.get(key) is not None]
    source = sources[0] if sources else None
    return source.get("url", source) if isinstance(source, dict) else source


MODALITY = Modality(
    "image",
    does="a picture",
    part=ImagePart,
    example=ImagePart(sha256="0" * 64),
    types=("image_url", "image", "input_image"),
    read=read,
    wire=lambda url: {"type": "image_url", "image_url": {"url": url}},
    slot=lambda _: {"type": "image"},
)
