"""Uploaded samples that say the same of the same picture, saved again, scaled or lit a little otherwise: the first
one stays. Other words about a picture are no copy: captions stand beside each other, and so do questions.

Pictures are the same by a perceptual hash and their colours; where a CLIP is set, also those that are cut, turned or
drawn over a little, which the hash takes for others: they are near each other in its vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from comfyloop.curate.filters import _texts, _vectors
from comfyloop.curate.groups import PictureGroups
from comfyloop.curate.rulings import KEEP, UPLOADED, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft
from comfyloop.records import Sample

MOST = 2000
"""Earlier samples with a word in common with whose vectors a sample's is compared, the newest."""


class ImageDeduplicator(Options):
    words: float = Field(
        default=0.8, gt=0, le=1, description="Share of words from which on two answers say the same."
    )
    model: str = Field(
        default="",
        description="Directory or id of a CLIP or SigLIP that finds what the hash does not; empty: none.",
    )
    near: float = Field(
        default=0.95, gt=0, le=1, description="Cosine of its vectors from which on two pictures are one."
    )


def judge(drafts: Sequence[Draft], ground: Ground, options: ImageDeduplicator) -> Iterator[Ruling]:
    uploaded = [
        place for place, draft in enumerate(drafts) if draft.sample.origin == UPLOADED and draft.pictures
    ]
    copies = _by_hash(drafts, uploaded, ground, options)
    asked = set(uploaded)
    missing = ""
    if options.model and uploaded:
        space = _vectors.space(ground, drafts, options.model)
        missing = space.missing
        if not missing:
            left = [place for place in uploaded if place not in copies]
            said = {place: _said(drafts[place]) for place in left}
            copies |= _by_vectors(drafts, left, said, space.pictures, options)
    for place in range(len(drafts)):
        if place in copies:
            earlier = drafts[copies[place]]
            yield Ruling("drop", "the same picture and words as " + ", ".join(earlier.sample.feedback))
        else:
            yield Ruling("unmeasured", missing) if missing and place in asked else KEEP


def _by_hash(
    drafts: Sequence[Draft], places: Sequence[int], ground: Ground, options: ImageDeduplicator
) -> dict[int, int]:
    """From a copy to the one that it is a copy of."""
    uploaded = [drafts[place] for place in places]
    there: _Compared | None = ground.left.get(FILTER.name)
    if there is None or there.words != options.words or uploaded[: len(there.drafts)] != there.drafts:
        same = ground.same or PictureGroups(lambda sha: ground.pictures.look(sha)).same
        there = ground.left[FILTER.name] = _Compared(options.words, same)
    for draft in uploaded[len(there.drafts) :]:
        there.take(draft)
    return {places[copy]: places[first] for copy, first in there.copies.items()}


@dataclass
class _Compared:
    """Uploaded samples with pictures in their order, and by what they ask about which picture."""

    words: float
    same: Callable[[str], str]
    drafts: list[Draft] = field(default_factory=list)
    copies: dict[int, int] = field(default_factory=dict)
    firsts: dict[object, list[int]] = field(default_factory=dict)

    def take(self, draft: Draft) -> None:
        place = len(self.drafts)
        self.drafts.append(draft)
        shown = draft.pictures
        about = (_asked(draft.sample), tuple(self.same(sha) for sha in shown))
        there = self.firsts.setdefault(about, [])
        said = _said(draft) if there else frozenset()
        earlier = next((one for one in there if _shared(_said(self.drafts[one]), said) >= self.words), None)
        if earlier is not None and self.drafts[earlier].pictures != shown:
            self.copies[place] = earlier
        else:
            there.append(place)


def _said(draft: Draft) -> frozenset[str]:
    return frozenset(_texts.words(draft.sample.answer))


def _by_vectors(
    drafts: Sequence[Draft],
    places: Sequence[int],
    said: dict[int, frozenset[str]],
    vectors: _vectors.Vectors,
    options: ImageDeduplicator,
) -> dict[int, int]:
    """The same of those that show one picture, by its vector."""
    firsts: dict[object, list[int]] = {}
    copies: dict[int, int] = {}
    for place in places:
        if len(drafts[place].pictures) != 1 or not vectors[place].any():
            continue
        keys = [(_asked(drafts[place].sample), word) for word in _first_words(said[place], options.words)]
        there = sorted({one for key in keys for one in firsts.get(key, ())[-MOST:]})
        alike = [one for one in there if _shared(said[one], said[place]) >= options.words]
        near = [one for one in alike if float(vectors[one] @ vectors[place]) >= options.near]
        if near and drafts[near[0]].pictures != drafts[place].pictures:
            copies[place] = near[0]
        else:
            for key in keys:
                firsts.setdefault(key, []).append(place)
    return copies


def _first_words(words: frozenset[str], share: float) -> list[str]:
    """So many of its words that two texts which share as many as that have one of these in common."""
    return sorted(words or {""})[: len(words) - math.ceil(share * len(words)) + 1]


def _asked(sample: Sample) -> object:
    return sample.kind, sample.label, " ".join(_texts.words(" ".join(m.text for m in sample.prompt)))


def _shared(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))


FILTER = Filter(
    "image_deduplicator",
    "the same picture was uploaded before, with the same words",
    judge,
    rank=201,
    compares=True,
    options=ImageDeduplicator,
)
