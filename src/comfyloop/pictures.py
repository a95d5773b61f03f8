"""How the bytes of an image become the picture that a model sees: one rule for training and for answers.

Upright as EXIF says, transparent parts on white, RGB, at most `max_pixels`. Nothing here imports torch.
"""

from __future__ import annotations

import io
import math

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
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
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
