"""Answers that are many times as long as the others: a page where the rest are captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import Field

from comfyloop.curate.filters import _texts
from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft


class Wordiness(Options):
    most: float = Field(
        default=4.0, gt=1, description="Most times that an answer is as long as nine in ten of the others."
    )
    least: int = Field(default=20, ge=2, description="Answers that show what is usual.")


def judge(drafts: Sequence[Draft], ground: Ground, options: Wordiness) -> Iterator[Ruling]:
    """Each is compared with answers of its own slice."""
    counts = [counts.words for counts in _texts.counted(ground, drafts)]
    of_slice: dict[str, list[int]] = {}
    for draft, number in zip(drafts, counts, strict=True):
        of_slice.setdefault(draft.sample.slice, []).append(number)
    usual = {
        slice: float(np.quantile(numbers, 0.9))
        for slice, numbers in of_slice.items()
        if len(numbers) >= options.least
    }
    for draft, number in zip(drafts, counts, strict=True):
        most = usual.get(draft.sample.slice)
        if most is None:
            yield KEEP
        elif number > options.most * max(most, 5):
            times = number / max(most, 1)
            yield against(draft, f"it has {number} words, {times:.0f} times what is usual", round(times, 1))
        else:
            yield Ruling("keep", score=round(number / max(most, 1), 2))


FILTER = Filter(
    "wordiness",
    "the answer is far longer than the others",
    judge,
    rank=127,
    compares=True,
    options=Wordiness,
)
