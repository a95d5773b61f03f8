"""Pictures whose answer is another one of the set's own few answers: labels that were mixed up.

By confident learning (Northcutt et al. 2021) on the vectors of `image_text_similarity`: a label is doubted where a
classifier that has not seen the sample finds another one likelier than it finds that one on the mean where it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from comfyloop.curate.filters import _vectors
from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft

FOLDS = 5
PENALTY = 0.3
SHARPNESS = 6.0
"""What turns a ridge's scores, from about 0 to 1, into odds."""


class LabelErrors(Options):
    model: str = Field(default="", description="As of `image_text_similarity`.")
    each: int = Field(default=6, ge=3, description="Samples with one answer, from which on it is a label.")


def judge(drafts: Sequence[Draft], ground: Ground, options: LabelErrors) -> Iterator[Ruling]:
    labels = _labels(drafts, options.each)
    if len(set(labels) - {""}) < 2:
        yield from (KEEP for _ in drafts)
        return
    space = _vectors.space(ground, drafts, options.model)
    there = [place for place, label in enumerate(labels) if label and space.pictures[place].any()]
    names = sorted({labels[place] for place in there})
    doubts: dict[int, tuple[str, float]] = {}
    if len(names) >= 2:
        given = np.array([names.index(labels[place]) for place in there])
        for index, (likelier, sure) in doubted(space.pictures[there], given).items():
            doubts[there[index]] = (names[likelier], sure)
    for place, label in enumerate(labels):
        if not label:
            yield KEEP
        elif not space.pictures[place].any():
            yield Ruling("unmeasured", space.missing or "its picture cannot be read")
        elif place in doubts:
            other, sure = doubts[place]
            yield Ruling("unsure", f"the picture looks like those that are {other[:60]!r}", round(sure, 3))
        else:
            yield KEEP


def _labels(drafts: Sequence[Draft], each: int) -> list[str]:
    """Of each draft about a picture, its answer, where enough have the same."""
    said = [
        " ".join(draft.sample.answer.casefold().split())
        if draft.pictures and draft.sample.label is not False
        else ""
        for draft in drafts
    ]
    often = {label for label, count in Counter(said).items() if count >= each}
    return [label if label in often else "" for label in said]


def doubted(vectors: NDArray[np.float32], given: NDArray[np.int64]) -> dict[int, tuple[int, float]]:
    """Of samples whose given label is doubted: the label that is likelier, and how likely."""
    likely = _out_of_fold(vectors, given)
    usual = np.array([likely[given == label, label].mean() for label in range(likely.shape[1])])
    confident = np.where(likely >= usual, likely, 0)
    best = confident.argmax(1)
    return {
        int(place): (int(best[place]), float(likely[place, best[place]]))
        for place in np.flatnonzero((best != given) & (confident.max(1) > 0))
    }


def _out_of_fold(vectors: NDArray[np.float32], given: NDArray[np.int64]) -> NDArray[np.float64]:
    """How likely each label is, by a ridge that has not seen the sample."""
    wanted = np.eye(given.max() + 1)[given]
    features = np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], 1).astype(np.float64)
    fold = np.zeros(len(given), dtype=np.int64)
    for label in range(wanted.shape[1]):  # each fold has its share of each label
        places = np.flatnonzero(given == label)
        fold[places] = np.arange(len(places)) % FOLDS
    scores = np.zeros_like(wanted)
    for part in range(FOLDS):
        seen, unseen = features[fold != part], features[fold == part]
        gram = seen.T @ seen + PENALTY * np.eye(features.shape[1])
        scores[fold == part] = unseen @ np.linalg.solve(gram, seen.T @ wanted[fold != part])
    odds = np.exp(SHARPNESS * (scores - scores.max(1, keepdims=True)))
    likely: NDArray[np.float64] = odds / odds.sum(1, keepdims=True)
    return likely


FILTER = Filter(
    "label_errors",
    "the picture looks like those with another answer",
    judge,
    rank=211,
    compares=True,
    options=LabelErrors,
)
