"""Reads the rows of a run of the image model strictly: every row is valid or reported as bad.

Row formats are defined in `comfyloop.formats`; this module checks their pictures. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageOps

from comfyloop import formats
from comfyloop.files import regular
from comfyloop.formats import BadRow, Row, UnusableRow
from comfyloop.media.decoding import eight_bits, has_more_than_eight_bits, opened

MOST_BYTES = 2**30
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class Picture:
    """One picture as it was found: `sha256` is of its bytes, the size is of the upright picture, or of the part of it
    that a person said counts."""

    source: formats.Picture
    sha256: str
    width: int
    height: int
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class PictureRow:
    line: int
    id: str
    caption: str
    chosen: Picture
    rejected: Picture | None = None
    item: int = 0
    repeats: int = 1  # how often it is passed in an epoch


def read_rows(
    path: Path, *, pairs: bool, max_image_pixels: int, note: Callable[[str], object] = lambda _: None
) -> tuple[list[PictureRow], list[BadRow]]:
    """All rows of a data file, good and bad; each image's header is read, none is decoded.

    Args:
        pairs: whether each row must have a picture that was not preferred.
        note: is told what a person should know of the file.

    Raises:
        NotFound: There is no such file.
        DataError: The file is empty or not UTF-8.
    """
    contents = formats.read(path)
    for sentence in contents.notes:
        note(sentence)
    rows: list[PictureRow] = []
    bad = list(contents.bad)
    for row in contents.good:
        try:
            rows.append(_row(row, pairs, max_image_pixels))
        except UnusableRow as error:
            bad.append(BadRow(row.line, row.id, str(error), row.item))
    return rows, sorted(bad, key=lambda b: (b.line, b.item))


def _row(row: Row, pairs: bool, max_image_pixels: int) -> PictureRow:
    caption = " ".join(row.turns[-1].text.split())
    chosen = _picture(row.chosen_image, "chosen", max_image_pixels)
    rejected = None
    if pairs:
        rejected = _picture(row.rejected_image, "rejected", max_image_pixels)
        if rejected.sha256 == chosen.sha256:
            raise UnusableRow("its two pictures are the same, so nothing was preferred")
    repeats = row.extra.get("repeats")
    often = repeats if isinstance(repeats, int) and repeats > 1 else 1
    chosen = _part(chosen, row.extra.get("crop"))
    return PictureRow(row.line, row.id, caption, chosen, rejected, row.item, often)


def _part(picture: Picture, crop: object) -> Picture:
    """The part of a picture that a row says counts."""
    if crop is None:
        return picture
    whole = isinstance(crop, list) and len(crop) == 4 and all(type(one) is int for one in crop)
    left, top, right, bottom = crop if whole and isinstance(crop, list) else (0, 0, 0, 0)
    if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
        raise UnusableRow(
            f"its crop {crop!r:.60} is no box (left, top, right, bottom) in its picture of {picture.width} x "
            f"{picture.height} pixels"
        )
    return replace(picture, width=right - left, height=bottom - top, box=(left, top, right, bottom))


def _picture(source: formats.Picture | None, key: str, max_image_pixels: int) -> Picture:
    if source is None:
        raise UnusableRow(f"it has no picture under {key!r}")
    picture = picture_at(source)
    if picture.width * picture.height > max_image_pixels:
        raise UnusableRow(
            f"its image {source.name} has {picture.width} x {picture.height} pixels, more than max_image_pixels "
            f"({max_image_pixels:,})"
        )
    return picture


def picture_at(source: formats.Picture) -> Picture:
    """An image, of which the header is read.

    Raises:
        UnusableRow: It is missing, empty, not an image, or a line.
    """
    try:
        data = _read(source)
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableRow(f"its image {source.name} does not exist") from None
    except OSError as error:
        raise UnusableRow(f"its image {source.name[:100]} cannot be read: {error.strerror}") from None
    if not data:
        raise UnusableRow(f"its image {source.name} is empty (0 bytes)")
    try:
        with opened(data, FORMATS) as image:
            width, height = image.size
            sideways = _is_sideways(image)
    except (OSError, SyntaxError, ValueError):
        raise UnusableRow(
            f"its image {source.name} is not one of {', '.join(FORMATS)}, whatever its name says"
        ) from None
    if max(width, height) > 20 * min(width, height):
        raise UnusableRow(f"its image {source.name} has {width} x {height} pixels: a line, not a picture")
    if sideways:
        width, height = height, width
    return Picture(source, hashlib.sha256(data).hexdigest(), width, height)


def _read(source: formats.Picture) -> bytes:
    return (regular(source, MOST_BYTES) if isinstance(source, Path) else source).read_bytes()


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
        with opened(_read(picture.source), FORMATS) as image:
            image.seek(0)
            image.load()
            upright = ImageOps.exif_transpose(image)
            if picture.box is not None:
                upright = upright.crop(picture.box)
            if has_more_than_eight_bits(upright):
                return eight_bits(upright)
            if upright.mode in {"RGBA", "LA", "PA"} or "transparency" in upright.info:
                rgba = upright.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                return Image.alpha_composite(white, rgba).convert("RGB")
            return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnusableRow(f"its image {picture.source.name} cannot be decoded ({error})") from None
