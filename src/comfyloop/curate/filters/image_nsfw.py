"""Pictures that are not safe for work, by Yahoo's Open NSFW (`comfyloop[nsfw]`). Off by default: what a project may
show is its people's to say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from comfyloop.curate.filters import _pictures
from comfyloop.curate.rulings import Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft


class Nsfw(Options):
    on: bool = Field(default=False, description="Whether it is applied.")
    most: float = Field(default=0.5, ge=0, le=1, description="Highest score of a picture that is learned.")


def judge(drafts: Sequence[Draft], ground: Ground, options: Nsfw) -> Iterator[Ruling]:
    for draft, told in zip(drafts, _pictures.asked(drafts, ground, "nsfw"), strict=True):
        if isinstance(told, Ruling):
            yield told
        elif (score := max(told)) > options.most:
            yield against(draft, f"the picture is {score:.0%} likely not safe for work", score)
        else:
            yield Ruling("keep", score=score)


FILTER = Filter("image_nsfw", "a picture of it is not safe for work", judge, rank=115, options=Nsfw)
