"""Rows of pictures that a person kept or preferred, read strictly: every line is a row or is named as bad.

One line: ``{"messages": [{"role": "user", "content": "a pony"}], "picked": "images/ab12.png"}``, with
``"over": "images/cd34.png"`` for a pair. Image paths are relative to the file. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from comfyloop import formats
from comfyloop.errors import DataError
from comfyloop.files import regular
from comfyloop.formats import BadRow, Row, UnusableRow
from comfyloop.pictures import eight_bits, has_more_than_eight_bits, opened

MOST_BYTES = 2**30
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
    rows: list[PictureRow] = []
    bad: list[BadRow] = []
    for item in formats.items(path, "an object"):
        name = ""
        try:
            row = formats.row_of(item, path.parent, answers=False)
            name = row.id
            rows.append(_row(row, path.parent, pairs, max_image_pixels))
        except UnusableRow as error:
            bad.append(BadRow(item.line, name, str(error), item.item))
    if not rows and not bad:
        raise DataError(f"{path} has no rows.", "Add at least one picture to train on.")
    return rows, bad


def _row(row: Row, folder: Path, pairs: bool, max_image_pixels: int) -> PictureRow:
    caption = " ".join(row.turns[-1].text.split())
    picked = _picture(row.extra.get("picked"), "picked", folder, max_image_pixels)
    over = None
    if pairs:
        over = _picture(row.extra.get("over"), "over", folder, max_image_pixels)
        if over.sha256 == picked.sha256:
            raise UnusableRow("its two pictures are the same, so nothing was preferred")
    return PictureRow(row.line, row.id, caption, picked, over)


def _picture(value: Any, key: str, folder: Path, max_image_pixels: int) -> Picture:
    if not isinstance(value, str) or not value:
        raise UnusableRow(f"it has no picture under {key!r}")
    if "\0" in value or not _is_text(value):
        shown = value.encode("unicode_escape").decode()[:100]
        raise UnusableRow(
            f"the path of its picture under {key!r} has characters that no file's name has: {shown}"
        )
    found = picture_at(folder / value)
    if found.width * found.height > max_image_pixels:
        raise UnusableRow(
            f"its image {found.path.name} has {found.width} x {found.height} pixels, more than max_image_pixels "
            f"({max_image_pixels:,})"
        )
    return found


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a character, as a cut-off emoji leaves it
        return False
    return True


def picture_at(path: Path) -> Picture:
    """An image file, of which the header is read.

    Raises:
        UnusableRow: It is missing, empty, not an image, or a line.
    """
    try:
        data = regular(path, MOST_BYTES).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableRow(f"its image {path.name} does not exist") from None
    except OSError as error:
        raise UnusableRow(f"its image {path.name[:100]} cannot be read: {error.strerror}") from None
    if not data:
        raise UnusableRow(f"its image {path.name} is empty (0 bytes)")
    try:
        with opened(data, FORMATS) as image:
            width, height = image.size
            sideways = _is_sideways(image)
    except (OSError, SyntaxError, ValueError):
        raise UnusableRow(
            f"its image {path.name} is not one of {', '.join(FORMATS)}, whatever its name says"
        ) from None
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
    try:
        with opened(picture.path.read_bytes(), FORMATS) as image:
            image.seek(0)
            image.load()
            upright = ImageOps.exif_transpose(image)
            if has_more_than_eight_bits(upright):
                return eight_bits(upright)
            if upright.mode in {"RGBA", "LA", "PA"} or "transparency" in upright.info:
                rgba = upright.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                return Image.alpha_composite(white, rgba).convert("RGB")
            return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnusableRow(f"its image {picture.path.name} cannot be decoded ({error})") from None
