"""Answers in which the same characters come again and again, words or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from comfyloop.curate.filters import _texts
from comfyloop.curate.rulings import Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft


class CharacterRepetition(Options):
    most: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Most of the text that its most frequent runs of ten characters make up.",
    )


def judge(drafts: Sequence[Draft], ground: Ground, options: CharacterRepetition) -> Iterator[Ruling]:
    for draft, counts in zip(drafts, _texts.counted(ground, drafts), strict=True):
        if counts.chars >= 30 and counts.characters_again > options.most:
            said = f"{counts.characters_again:.0%} of it are the same runs of characters"
            yield against(draft, said, counts.characters_again)
        else:
            yield Ruling("keep", score=counts.characters_again)


FILTER = Filter(
    "character_repetition",
    "the answer repeats the same characters",
    judge,
    rank=122,
    options=CharacterRepetition,
)
