"""An image whose bytes are no longer in the blob store, or are not those that were stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

from comfyloop.curate.samples import Draft
from comfyloop.settings import Settings

REASON = "missing_image"
SENTENCE = "an image of it is no longer stored, or is damaged"


def finder(
    has_image: Callable[[str], bool],
    is_whole: Callable[[str], bool],
) -> Callable[[Sequence[Draft], Settings], Iterator[tuple[int, str]]]:
    whole = cache(is_whole)  # several samples are about one image

    def find(drafts: Sequence[Draft], settings: Settings) -> Iterator[tuple[int, str]]:
        for index, draft in enumerate(drafts):
            sample = draft.sample
            named = (*sample.images, *(image for image in (sample.picked, sample.over) if image))
            if gone := [image for image in named if not has_image(image)]:
                yield index, gone[0]
            elif damaged := [image for image in named if not whole(image)]:
                yield index, f"{damaged[0]} is damaged on the disk; uploading it again mends it"

    return find
