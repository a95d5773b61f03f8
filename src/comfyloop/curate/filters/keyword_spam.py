"""Answers that are heaps of keywords where a sentence was wanted. Prompts for image models are often written so, and
are left alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from comfyloop.curate.filters import _texts
from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft


class Spam(Options):
    pieces: int = Field(default=8, ge=2, description="From so many keywords on it is a heap.")
    words: float = Field(default=2.5, gt=0, description="Most words a keyword has, on the mean.")
    small: float = Field(
        default=0.15, ge=0, le=1, description="Share of words such as `the` and `of` that makes a sentence."
    )


def judge(drafts: Sequence[Draft], ground: Ground, options: Spam) -> Iterator[Ruling]:
    for draft, counts in zip(drafts, _texts.counted(ground, drafts), strict=True):
        if draft.sample.kind in ("captioned_image", "image_pair") or draft.sample.slice in (
            "prompt",
            "graph",
        ):
            yield KEEP
            continue
        unspaced = len(_texts.HAN.findall(draft.sample.answer)) > counts.words / 2
        each = counts.words / max(1, counts.pieces) / (2 if unspaced else 1)
        heap = counts.pieces >= options.pieces and each <= options.words
        if heap and counts.small <= options.small * counts.words:
            yield against(draft, f"it is a list of {counts.pieces} keywords", counts.pieces)
        else:
            yield Ruling("keep", score=counts.pieces)


FILTER = Filter("keyword_spam", "the answer is a heap of keywords", judge, rank=123, options=Spam)
