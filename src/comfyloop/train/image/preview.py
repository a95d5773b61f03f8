"""Previews of how pictures will be cropped, before anything is trained on them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw

from comfyloop.formats import UnusableRow
from comfyloop.media import subject
from comfyloop.train.image.buckets import fit, sizes
from comfyloop.train.image.rows import decode, picture_at

STEP = 64
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
SIDE = 1024
"""Pixels of the longer side of what is drawn."""


def previews(
    what: Path, out: Path, resolution: int, by: Literal["subject", "middle"]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Draw previews of a picture, or of all pictures in a folder, into another folder; returns size, crop box and
    file of each, and the reasons for those that cannot be read."""
    files = (
        sorted(file for file in what.rglob("*") if file.suffix.lower() in ENDINGS)
        if what.is_dir()
        else [what]
    )
    buckets = sizes(resolution, STEP)
    entries: list[dict[str, Any]] = []
    bad: list[tuple[str, str]] = []
    for file in files:
        name = str(file.relative_to(what)) if what.is_dir() else file.name
        try:
            picture = decode(picture_at(file))
        except UnusableRow as error:
            bad.append((name, str(error)))
            continue
        how = fit(*picture.size, buckets)
        corner = how.corner
        if by == "subject" and how.scaled != how.size:
            corner = subject.corner(subject.weights(picture), how.scaled, how.size)
        scale = picture.width / how.scaled[0], picture.height / how.scaled[1]
        box = [
            round(place * each)
            for place, each in zip(
                (*corner, corner[0] + how.size[0], corner[1] + how.size[1]), scale * 2, strict=True
            )
        ]
        target = out / Path(name).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        _drawn(picture, box).save(target, quality=90)
        entries.append({"picture": name, "size": list(picture.size), "kept": box, "drawn": str(target)})
    return entries, bad


def _drawn(picture: Image.Image, box: list[int]) -> Image.Image:
    """The picture, darkened where it is cropped away."""
    preview = picture.point(lambda value: value // 3)
    left, top, right, bottom = box
    preview.paste(picture.crop((left, top, right, bottom)), (left, top))
    width = max(2, max(picture.size) // 200)
    ImageDraw.Draw(preview).rectangle((left, top, right - 1, bottom - 1), outline="#ff3b30", width=width)
    preview.thumbnail((SIDE, SIDE))
    return preview
