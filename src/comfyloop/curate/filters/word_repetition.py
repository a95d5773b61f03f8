"""Answers that say the same words over and over: whoever learns from them does the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from comfyloop.curate.filters import _texts
from comfyloop.curate.rulings import Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft


class WordRepetition(Options):
    most: float = Field(
        default=0.4, ge=0, le=1, description="Most of the runs of five words that come more than once."
    )


def judge(drafts: Sequence[Draft], ground: Ground, options: WordRepetition) -> Iterator[Ruling]:
    for draft, counts in zip(drafts, _texts.counted(ground, drafts), strict=True):
        if counts.words >= 15 and counts.words_again > options.most:
            said = f"{counts.words_again:.0%} of its runs of five words come more than once"
            yield against(draft, said, counts.words_again)
        else:
            yield Ruling("keep", score=counts.words_again)


FILTER = Filter(
    "word_repetition",
    "the answer says the same words again and again",
    judge,
    rank=121,
    options=WordRepetition,
)
