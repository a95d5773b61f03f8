"""What this project's people take and refuse, learned: an answer that is like the refused ones is shown to a person.

Taken are answers that somebody accepted, rated 4-5 or wrote, and prompts that were kept; refused are those that
somebody rated 1-2 or rewrote; what was accepted, fixed or rejected in the review queue counts likewise. A logistic
regression on words and length tells them apart; how well, it is asked on answers that it has not seen, and where that
is little better than chance nothing is said.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from comfyloop.curate.filters import _texts
from comfyloop.curate.reviews import Taught
from comfyloop.curate.rulings import KEEP, UPLOADED, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft

WIDTH = 512
MOST = 4000
"""Decisions that it learns from, the newest."""
PENALTY = 3.0
STEPS = 12
FOLDS = 5
ANEW = 40
"""Decisions, of many, that come in before it learns anew: one among thousands changes next to nothing."""

Vectors = NDArray[np.float64]


class LearnedOptions(Options):
    each: int = Field(default=20, ge=5, description="Answers taken, and refused, that it takes to learn.")
    least_auc: float = Field(
        default=0.7,
        gt=0.5,
        le=1,
        description="How well it must tell unseen ones apart: 0.5 is chance, 1 always.",
    )
    refused: float = Field(
        default=0.85, ge=0.5, le=1, description="Chance of being refused from which on a person is asked."
    )


@dataclass(frozen=True)
class Decisions:
    """Answers, and whether each was taken."""

    texts: list[str]
    taken: NDArray[np.float64]


def judge(drafts: Sequence[Draft], ground: Ground, options: LearnedOptions) -> Iterator[Ruling]:
    """Of what was uploaded. The score is the chance that people would refuse it."""
    asked = [draft.sample.origin == UPLOADED and draft.sample.label is None for draft in drafts]
    taste = taste_of(drafts, ground, options) if any(asked) else None
    told = _refusals(taste, [d for d, one in zip(drafts, asked, strict=True) if one], ground, options)
    for draft, one in zip(drafts, asked, strict=True):
        if taste is None or not one:
            yield KEEP
        elif taste.auc < options.least_auc:
            reason = f"what people refuse cannot be told from what they take (AUC {taste.auc:.2f})"
            yield Ruling("unmeasured", reason)
        elif (refused := told[draft.sample.id]) >= options.refused:
            reason = (
                f"{refused:.0%} likely to be refused (AUC {taste.auc:.2f} on {taste.decisions} decisions)"
            )
            yield Ruling("unsure", reason, round(refused, 3))
        else:
            yield Ruling("keep", score=round(refused, 3))


def _refusals(
    taste: DecisionModel | None, drafts: Sequence[Draft], ground: Ground, options: LearnedOptions
) -> dict[str, float]:
    """How likely each is refused, by the ids of samples: asked once, until something else is learned."""
    if taste is None or taste.auc < options.least_auc:
        return {}
    there: tuple[DecisionModel, dict[str, float]] | None = ground.left.get(FILTER.name)
    if there is None or there[0] is not taste:
        there = ground.left[FILTER.name] = (taste, {})
    new = [draft for draft in drafts if draft.sample.id not in there[1]]
    read(new, ground)
    there[1].update((draft.sample.id, taste.refused(read_of(draft))) for draft in new)
    return there[1]


@dataclass(frozen=True)
class DecisionModel:
    """What was learned of decisions.

    Attributes:
        auc: How well it tells unseen ones apart.
    """

    decisions: int
    auc: float
    weights: Vectors

    def refused(self, seen: Read) -> float:
        """How likely people here refuse it."""
        grams = self._of_grams[seen.grams].sum() / max(1.0, seen.length)
        told = float(grams + np.dot(seen.counts, self.weights[WIDTH:]))
        return 1 - 1 / (1 + math.exp(-min(max(told, -30.0), 30.0)))

    @functools.cached_property
    def _of_grams(self) -> Vectors:
        """Of a word's place its weight; the places of those that count the other way lie behind the others."""
        return np.concatenate([self.weights[:WIDTH], -self.weights[:WIDTH]])


def taste_of(drafts: Sequence[Draft], ground: Ground, options: LearnedOptions) -> DecisionModel | None:
    """None where there are too few decisions."""
    decisions = decisions_of(drafts, ground.taught)
    if min(decisions.taken.sum(), (1 - decisions.taken).sum()) < options.each:
        return None
    return _taste(tuple(decisions.texts), tuple(decisions.taken.tolist()), options.least_auc)


@functools.lru_cache(maxsize=4)  # the queue asks for what the filter went by, and so does the next turn
def _taste(texts: tuple[str, ...], taken: tuple[float, ...], least_auc: float) -> DecisionModel:
    decisions = Decisions(list(texts), np.array(taken))
    seen = np.stack([features(text) for text in texts])
    sure = auc(_out_of_fold(seen, decisions), decisions.taken)
    weights = fit(seen, decisions.taken) if sure >= least_auc else np.zeros(seen.shape[1])
    return DecisionModel(len(texts), sure, weights)


def decisions_of(drafts: Sequence[Draft], taught: Sequence[Taught] = ()) -> Decisions:
    """Each answer once; one that was both taken and refused says nothing. Of very many the last few wait for more."""
    said: dict[str, set[bool]] = {}
    for draft in drafts:
        sample = draft.sample
        if sample.origin == UPLOADED or sample.kind in ("image_pair",):
            continue
        if sample.kind == "labelled":
            said.setdefault(sample.answer, set()).add(sample.label is not False)
        else:
            said.setdefault(sample.answer, set()).add(True)
        if sample.rejected:
            said.setdefault(sample.rejected, set()).add(False)
    for text, _ in taught:  # who looked at it in the queue has the last word
        said.pop(text, None)
    for text, taken in taught:
        said.setdefault(text, set()).add(taken)
    clear = [(text, taken) for text, (taken, *more) in said.items() if not more]
    late = len(clear) % max(1, min(ANEW, len(clear) // 50))
    clear = clear[: len(clear) - late][-MOST:]
    return Decisions([text for text, _ in clear], np.array([float(taken) for _, taken in clear]))


class Read(NamedTuple):
    """What is seen of a text.

    Attributes:
        grams: The places of its words and pairs of words; of those that count the other way, `WIDTH` on.
        length: Of the vector that they make.
        counts: What is counted.
    """

    grams: NDArray[np.int16]
    length: float
    counts: NDArray[np.float32]


def read(drafts: Sequence[Draft], ground: Ground) -> None:
    """Look at the answers of drafts, once and for all."""
    new = [draft for draft in drafts if FILTER.name not in draft.noted]
    told = ground.measurements.of_samples(
        "learned/1", new, lambda some: (_packed(seen_in(draft.sample.answer)) for draft in some), large=True
    )
    for draft, one in zip(new, told, strict=True):
        draft.noted[FILTER.name] = base64.b64decode(one)


def read_of(draft: Draft) -> Read:
    if FILTER.name not in draft.noted:
        draft.noted[FILTER.name] = base64.b64decode(_packed(seen_in(draft.sample.answer)))
    kept: bytes = draft.noted[FILTER.name]
    numbers = np.frombuffer(kept[: _NUMBERS * 4], dtype="<f4")
    return Read(np.frombuffer(kept[_NUMBERS * 4 :], dtype="<i2"), float(numbers[0]), numbers[1:])


COUNTS = 6
_NUMBERS = COUNTS + 1


def _packed(seen: Read) -> str:
    numbers = np.array([seen.length, *seen.counts], dtype="<f4")
    return base64.b64encode(numbers.tobytes() + seen.grams.astype("<i2").tobytes()).decode()


def seen_in(text: str) -> Read:
    """Words and pairs of words, hashed, and what is counted."""
    found = _texts.words(text)
    grams = sorted({*found, *(f"{one} {two}" for one, two in itertools.pairwise(found))})
    codes = [
        int.from_bytes(hashlib.blake2b(gram.encode("utf-8", "replace"), digest_size=4).digest())
        for gram in grams
    ]
    places = np.array([code % WIDTH + (0 if code & (1 << 20) else WIDTH) for code in codes], dtype=np.int16)
    counts = _texts.counts(text)
    counted = (
        1.0, np.log1p(counts.words) / 3, np.log1p(counts.pieces) / 2, counts.words_again, counts.small / 20,
        float(text.rstrip()[-1:] in ".!?。！？"),
    )  # fmt: skip
    return Read(places, float(np.linalg.norm(_hashed(places))), np.array(counted, dtype=np.float32))


def _hashed(grams: NDArray[np.int16]) -> Vectors:
    counted = np.bincount(grams, minlength=2 * WIDTH)
    made: Vectors = (counted[:WIDTH] - counted[WIDTH:]).astype(np.float64)
    return made


def features(text: str) -> Vectors:
    """The same as a vector."""
    seen = seen_in(text)
    return np.concatenate([_hashed(seen.grams) / max(1.0, seen.length), seen.counts])


def fit(seen: Vectors, taken: NDArray[np.float64]) -> Vectors:
    """Logistic regression with both sides of one weight, by Newton's method."""
    share = np.where(taken == 1, 0.5 / taken.mean(), 0.5 / (1 - taken).mean())
    weights = np.zeros(seen.shape[1])
    for _ in range(STEPS):
        likely = chance(seen, weights)
        slope = seen.T @ (share * (taken - likely)) - PENALTY / 10 * weights
        curve = (seen * (share * likely * (1 - likely))[:, None]).T @ seen
        step = np.linalg.solve(curve + PENALTY / 10 * np.eye(len(weights)), slope)
        weights = weights + step
        if float(np.abs(step).max()) < 1e-4:
            break
    return weights


def chance(seen: Vectors, weights: Vectors) -> Vectors:
    """Of being taken."""
    made: Vectors = 1 / (1 + np.exp(-np.clip(seen @ weights, -30, 30)))
    return made


def auc(scores: Vectors, taken: NDArray[np.float64]) -> float:
    """How often a taken one has the higher score than a refused one; ties count half."""
    good, bad = scores[taken == 1], np.sort(scores[taken == 0])
    below, upto = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
    return float((below + upto).mean() / 2 / max(1, len(bad)))


def _out_of_fold(seen: Vectors, decisions: Decisions) -> Vectors:
    scores = np.zeros(len(seen))
    fold = np.arange(len(seen)) % FOLDS
    for part in range(FOLDS):
        scores[fold == part] = chance(
            seen[fold == part], fit(seen[fold != part], decisions.taken[fold != part])
        )
    return scores


FILTER = Filter(
    "learned", "people here refuse such answers", judge, rank=212, compares=True, options=LearnedOptions
)
