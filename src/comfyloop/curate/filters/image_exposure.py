"""Pictures in which most of what is shown is burnt out, or drowned in black. An even ground does not count: paper is
white, and is meant to be. A drawing in pure colours measures the same, so nothing is left out: a person is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from comfyloop.curate.filters import _pictures
from comfyloop.curate.rulings import Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft


class Exposure(Options):
    most_blown: float = Field(
        default=0.5, ge=0, le=1, description="Most of the subject that is clipped at white in two channels."
    )
    most_clipped: float = Field(
        default=0.9, ge=0, le=1, description="Most of the subject that is clipped at white in one channel."
    )
    most_crushed: float = Field(default=0.9, ge=0, le=1, description="Most of the subject that is black.")


def judge(drafts: Sequence[Draft], ground: Ground, options: Exposure) -> Iterable[Ruling]:
    def problem(counts: _pictures.PictureMeasures) -> str:
        if counts.contrast == 0:
            return ""  # one colour all over: a swatch
        if counts.blown > options.most_blown:
            return f"{counts.blown:.0%} of what the picture shows is burnt out"
        if counts.clipped > options.most_clipped:
            return f"{counts.clipped:.0%} of what the picture shows is clipped"
        if counts.crushed > options.most_crushed:
            return f"{counts.crushed:.0%} of what the picture shows is black"
        return ""

    return _pictures.judged(drafts, ground, lambda counts: counts.clipped, problem, ask=True)


FILTER = Filter(
    "image_exposure", "a picture of it is over- or underexposed", judge, rank=111, options=Exposure
)
