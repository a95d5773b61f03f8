"""Answers of next to no text, or of more than anybody reads. What is longer than max_answer_chars is left out by
`too_long`, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from comfyloop.curate.filters import _texts
from comfyloop.curate.rulings import Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft


class Length(Options):
    least: int = Field(default=1, ge=0, description="Fewest characters of an answer.")
    most: int = Field(default=6_000, ge=1, description="Most characters of an answer.")


def judge(drafts: Sequence[Draft], ground: Ground, options: Length) -> Iterator[Ruling]:
    for draft, counts in zip(drafts, _texts.counted(ground, drafts), strict=True):
        if options.least <= counts.chars <= options.most:
            yield Ruling("keep", score=counts.chars)
        else:
            yield against(draft, f"the answer has {counts.chars} characters", counts.chars)


FILTER = Filter("text_length", "the answer is too short or too long", judge, rank=120, options=Length)
