"""Strips: of them little is left when the short side is brought to a model's size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from comfyloop.curate.filters import _pictures
from comfyloop.curate.rulings import Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft


class AspectRatio(Options):
    most: float = Field(default=5.0, ge=1, description="Most times that one side is as long as the other.")


def judge(drafts: Sequence[Draft], ground: Ground, options: AspectRatio) -> Iterable[Ruling]:
    def ratio(counts: _pictures.PictureMeasures) -> float:
        return max(counts.width, counts.height) / min(counts.width, counts.height)

    def problem(counts: _pictures.PictureMeasures) -> str:
        strip = ratio(counts) > options.most
        return f"the picture is a strip of {counts.width} x {counts.height} pixels" if strip else ""

    return _pictures.judged(drafts, ground, ratio, problem)


FILTER = Filter("image_aspect_ratio", "a picture of it is a strip", judge, rank=113, options=AspectRatio)
