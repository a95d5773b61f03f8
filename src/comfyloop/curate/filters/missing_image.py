"""An image whose bytes are no longer in the blob store, or are not those that were stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    exists, is_whole = (
        cache(ground.pictures.exists),
        cache(ground.pictures.is_whole),
    )  # many are about one image
    for draft in drafts:
        sample = draft.sample
        named = (*sample.images, *(image for image in (sample.picked, sample.over) if image))
        if gone := [image for image in named if not exists(image)]:
            yield Ruling("drop", gone[0])
        elif damaged := [image for image in named if not is_whole(image)]:
            yield Ruling("drop", f"{damaged[0]} is damaged on the disk; uploading it again mends it")
        else:
            yield KEEP


FILTER = Filter(
    "missing_image", "an image of it is no longer stored, or is damaged", judge, rank=60, final=True
)
