"""Pictures too small to show anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from comfyloop.curate.filters import _pictures
from comfyloop.curate.rulings import Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft


class Shape(Options):
    least: int = Field(default=8, ge=1, description="Least pixels of the shorter side: pixel art has 8.")


def judge(drafts: Sequence[Draft], ground: Ground, options: Shape) -> Iterable[Ruling]:
    def problem(counts: _pictures.PictureMeasures) -> str:
        small = min(counts.width, counts.height) < options.least
        return f"the picture has {counts.width} x {counts.height} pixels" if small else ""

    return _pictures.judged(drafts, ground, lambda counts: min(counts.width, counts.height), problem)


FILTER = Filter("image_shape", "a picture of it has too few pixels", judge, rank=112, options=Shape)
