"""Rows of pictures that a person kept or preferred, read strictly: every line is a row or is named as bad.

One line: ``{"messages": [{"role": "user", "content": "a pony"}], "picked": "images/ab12.png"}``, with
``"over": "images/cd34.png"`` for a pair. Image paths are relative to the file. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from comfyloop.errors import DataError, NotFound
from comfyloop.train.rows import BadRow, UnusableRow, parse

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class Picture:
    """One image file as it was found: `sha256` is of its bytes, the size is of the upright picture."""

    path: Path
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class PictureRow:
    line: int
    id: str
    caption: str
    picked: Picture
    over: Picture | None = None


def read_rows(path: Path, *, pairs: bool, max_image_pixels: int) -> tuple[list[PictureRow], list[BadRow]]:
    """All lines of a data file, good and bad; each image's header is read, none is decoded.

    Args:
        pairs: whether each row must have a picture that was not preferred.

    Raises:
        NotFound: There is no such file.
        DataError: The file is empty or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(
            f"There is no data file {path}.", "Name the train.captioned_image.jsonl of a snapshot."
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not UTF-8 text.", "Save the file as UTF-8.") from None
    rows: list[PictureRow] = []
    bad: list[BadRow] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name = ""
        try:
            value = parse(line, "an object")
            name = str(value.get("id") or hashlib.sha256(line.encode()).hexdigest()[:12])
            rows.append(_row(value, number, name, path.parent, pairs, max_image_pixels))
        except UnusableRow as error:
            bad.append(BadRow(number, name, str(error)))
    if not rows and not bad:
        raise DataError(f"{path} has no rows.", "Add at least one picture to train on.")
    return rows, bad


def _row(
    value: dict[str, Any], line: int, name: str, folder: Path, pairs: bool, max_image_pixels: int
) -> PictureRow:
    caption = _caption(value.get("messages"))
    picked = _picture(value.get("picked"), "picked", folder, max_image_pixels)
    over = None
    if pairs:
        over = _picture(value.get("over"), "over", folder, max_image_pixels)
        if over.sha256 == picked.sha256:
            raise UnusableRow("its two pictures are the same, so nothing was preferred")
    return PictureRow(line, name, caption, picked, over)


def _caption(messages: Any) -> str:
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise UnusableRow("it has no list of messages with the prompt")
    content = messages[-1].get("content")
    if not isinstance(content, str):
        raise UnusableRow(f"its prompt is a {type(content).__name__}, not text")
    return " ".join(content.split())


def _picture(value: Any, key: str, folder: Path, max_image_pixels: int) -> Picture:
    if not isinstance(value, str) or not value:
        raise UnusableRow(f"it has no picture under {key!r}")
    found = picture_at(folder / value)
    if found.width * found.height > max_image_pixels:
        raise UnusableRow(
            f"its image {found.path.name} has {found.width} x {found.height} pixels, more than max_image_pixels "
            f"({max_image_pixels:,})"
        )
    return found


def picture_at(path: Path) -> Picture:
    """An image file, of which the header is read.

    Raises:
        UnusableRow: It is missing, empty, not an image, or a line.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise UnusableRow(f"its image {path.name} does not exist") from None
    if not data:
        raise UnusableRow(f"its image {path.name} is empty (0 bytes)")
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our own limit, with a sentence
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            sideways = _is_sideways(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise UnusableRow(
            f"its image {path.name} is not one of {', '.join(FORMATS)}, whatever its name says"
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if max(width, height) > 20 * min(width, height):
        raise UnusableRow(f"its image {path.name} has {width} x {height} pixels: a line, not a picture")
    if sideways:
        width, height = height, width
    return Picture(path, hashlib.sha256(data).hexdigest(), width, height)


def _is_sideways(image: Image.Image) -> bool:
    try:
        return image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError):  # cut off before it, which decoding will say
        return False


def decode(picture: Picture) -> Image.Image:
    """The upright picture in RGB on white; the first frame of an animation.

    Raises:
        UnusableRow: It is cut off or damaged.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(picture.path, formats=FORMATS) as image:
            image.seek(0)
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I") or upright.mode == "F":
                return _eight_bits(upright)
            if upright.mode in {"RGBA", "LA", "PA"} or "transparency" in upright.info:
                rgba = upright.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                return Image.alpha_composite(white, rgba).convert("RGB")
            return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnusableRow(f"its image {picture.path.name} cannot be decoded ({error})") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits (or real numbers from 0 to 1) in eight: Pillow's own conversion cuts them off at 255."""
    most = 1.0 if image.mode == "F" else 65535.0
    values = np.asarray(image, dtype=np.float64) / most
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
