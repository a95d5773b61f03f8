"""Decodes image bytes to the picture that a model sees, in the same way for training and serving.

Rotated according to EXIF, transparency on white, RGB, at most `max_pixels`. Nothing here imports torch.
"""

from __future__ import annotations

import io
import math
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
Image.MAX_IMAGE_PIXELS = None  # `max_image_pixels` below takes its place, with a sentence


MAX_ASPECT = 50
"""Times that a picture may be as long as it is wide. Processors bring the short side to a size of their own: a strip of
16,384 x 1 pixels would become gigabytes, and some refuse it outright."""


class BadPicture(Exception):
    """Why bytes are no picture, as the end of a sentence about it."""


class TooManyPixels(BadPicture):
    """More pixels than may be decoded."""


def read_picture(data: bytes, max_pixels: int, max_image_pixels: int) -> Image.Image:
    """An RGB image of at most `max_pixels`, upright, aspect kept.

    The size is read from the header before anything is decoded; JPEG is decoded at a fraction of its size
    where that is enough.

    Raises:
        BadPicture: It is empty, not an image, cut off or a mere strip.
        TooManyPixels: It has more than `max_image_pixels`.
    """
    if not data:
        raise BadPicture("is empty (0 bytes)")
    try:
        with opened(data) as image:
            width, height = image.size
            if width * height > max_image_pixels:
                raise TooManyPixels(
                    f"has {width} x {height} pixels, more than max_image_pixels ({max_image_pixels:,})"
                )
            if problem := too_narrow(width, height):
                raise BadPicture(problem)
            image.draft("RGB", fit(width, height, max_pixels))
            image.load()
            upright = ImageOps.exif_transpose(image)
            if has_more_than_eight_bits(upright):
                upright = eight_bits(upright)
            if upright.width * upright.height > max_pixels:
                upright = upright.resize(
                    fit(upright.width, upright.height, max_pixels), Image.Resampling.BICUBIC
                )
            return _on_white(upright)
    except UnidentifiedImageError:
        raise BadPicture(f"is not one of {', '.join(FORMATS)}, whatever its name says") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadPicture(f"cannot be decoded ({error})") from None


def opened(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The image with its header read, and nothing decoded. Raises what Pillow raises."""
    return Image.open(io.BytesIO(without_notes(data)), formats=formats)


_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTED = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_MOST_NOTE = 2**20


def without_notes(data: bytes) -> bytes:
    """A PNG without its colour profile and texts, except those that give its orientation.

    Pillow refuses a picture whose profile or text is longer than a megabyte, which workflows saved by ComfyUI may
    be. Data that is not a PNG, or is truncated, is returned unchanged.
    """
    if not data.startswith(_PNG):
        return data
    pieces, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if kind not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt") or _tells_how_it_is_turned(
            kind, data[at + 8 : end - 4]
        ):
            pieces.append(data[at:end])
        at = end
    return b"".join([*pieces, data[at:]])


def _tells_how_it_is_turned(kind: bytes, text: bytes) -> bool:
    """Whether a text chunk may say so, and is short enough to be read."""
    word, _, rest = text.partition(b"\0")
    if kind == b"iCCP" or word not in _ORIENTED:
        return False
    packed = b""
    if kind == b"zTXt":
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    if not packed:
        return len(rest) <= _MOST_NOTE
    try:
        unpacking = zlib.decompressobj()
        unpacking.decompress(packed, _MOST_NOTE)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail


def too_narrow(width: int, height: int) -> str:
    """What is wrong with a picture's shape, as the end of a sentence about it; empty when nothing is."""
    if max(width, height) <= MAX_ASPECT * min(width, height):
        return ""
    return f"has {width} x {height} pixels; one side may be at most {MAX_ASPECT} times the other"


def fit(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """The largest size of the same aspect with at most `max_pixels`."""
    if width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


def has_more_than_eight_bits(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits (or real numbers from 0 to 1) in eight: Pillow's own conversion cuts them off at 255."""
    most = 1.0 if image.mode == "F" else 65535.0
    values = np.asarray(image, dtype=np.float64) / most
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, with transparent parts shown on white rather than on whatever colour lies beneath them."""
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
