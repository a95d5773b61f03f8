"""Images of training rows: opened, checked and brought down to size. Nothing here imports torch."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from comfyloop.train.rows import UnusableRow

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def open_picture(path: Path, max_pixels: int, max_image_pixels: int) -> Image.Image:
    """An RGB image of at most `max_pixels`, upright, aspect kept.

    The size is read from the header before anything is decoded; JPEG is decoded at a fraction of its size
    where that is enough.

    Raises:
        UnusableRow: It is missing, empty, not an image, cut off, or larger than `max_image_pixels`.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise UnusableRow(f"its image {path.name} does not exist") from None
    if size == 0:
        raise UnusableRow(f"its image {path.name} is empty (0 bytes)")
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our own limit, with a sentence
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_image_pixels:
                raise UnusableRow(
                    f"its image {path.name} has {width} x {height} pixels, more than max_image_pixels "
                    f"({max_image_pixels:,})"
                )
            target = fit(width, height, max_pixels)
            image.draft("RGB", target)
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.width * upright.height > max_pixels:
                upright = upright.resize(
                    fit(upright.width, upright.height, max_pixels), Image.Resampling.BICUBIC
                )
            return _on_white(upright)
    except UnidentifiedImageError:
        raise UnusableRow(
            f"its image {path.name} is not one of {', '.join(_FORMATS)}, whatever its name says"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UnusableRow(f"its image {path.name} cannot be decoded ({error})") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def fit(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """The largest size of the same aspect with at most `max_pixels`."""
    if width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, with transparent parts shown on white rather than on whatever colour lies beneath them."""
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
