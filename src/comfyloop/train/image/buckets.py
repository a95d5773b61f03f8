"""Aspect-ratio buckets: the sizes that pictures are scaled to, and how they are cropped.

A picture keeps its shape as far as the sizes allow: it is assigned to the bucket of the nearest aspect ratio,
scaled to cover it, and cropped: equally on both sides, or away from its subject (latents.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

MOST_ELONGATED = 3.0


@dataclass(frozen=True)
class Fit:
    """How a picture is scaled and cropped to its bucket.

    Attributes:
        size: Width and height of the bucket.
        scaled: Width and height the picture is scaled to first; covers `size`.
        corner: Left and top of what is kept, in the scaled picture.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]


def sizes(resolution: int, step: int) -> list[tuple[int, int]]:
    """All buckets: multiples of `step` with at most resolution² pixels, and no more elongated than 3 to 1."""
    area = resolution * resolution
    buckets = set()
    for width in range(step, int(resolution * math.sqrt(MOST_ELONGATED)) + step, step):
        height = area // width // step * step
        if height >= step and max(width, height) <= MOST_ELONGATED * min(width, height):
            buckets |= {(width, height), (height, width)}
    return sorted(buckets) or [(step, step)]


def fit(width: int, height: int, buckets: list[tuple[int, int]]) -> Fit:
    """The bucket of the nearest aspect ratio (the larger one of a tie), and the crop."""
    aspect = math.log(width / height)
    size = min(buckets, key=lambda b: (round(abs(math.log(b[0] / b[1]) - aspect), 6), -b[0] * b[1]))
    scale = max(size[0] / width, size[1] / height)
    scaled = (max(size[0], round(width * scale)), max(size[1], round(height * scale)))
    corner = ((scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2)
    return Fit(size, scaled, corner)


def cut(picture: Image.Image, how: Fit) -> Image.Image:
    """An RGB picture of the bucket's size."""
    left, top = how.corner
    box = (left, top, left + how.size[0], top + how.size[1])
    if picture.size != how.scaled:
        picture = picture.resize(how.scaled, Image.Resampling.LANCZOS)
    return picture.crop(box)
