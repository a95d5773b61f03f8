"""Blurred pictures: they teach to see, or to paint, without edges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from comfyloop.curate.filters import _pictures
from comfyloop.curate.rulings import Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft

FLAT = 3.0
"""Contrast below which a picture is an even ground, that has no edges to be sharp or blurred."""


class Sharpness(Options):
    least: float = Field(
        default=6.0, ge=0, description="Least variance of the Laplacian: sharp 13 and more, blurred 0.3 to 4."
    )


def judge(drafts: Sequence[Draft], ground: Ground, options: Sharpness) -> Iterable[Ruling]:
    def problem(counts: _pictures.PictureMeasures) -> str:
        blurred = counts.sharpness < options.least and counts.contrast >= FLAT
        return f"the picture is blurred ({counts.sharpness:.1f})" if blurred else ""

    return _pictures.judged(drafts, ground, lambda counts: counts.sharpness, problem)


FILTER = Filter("image_sharpness", "a picture of it is blurred", judge, rank=110, options=Sharpness)
