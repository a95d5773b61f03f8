"""Uploaded samples that say the same of the same picture, saved again, scaled or lit a little otherwise: the first
one stays. Other words about a picture are no copy: captions stand beside each other, and so do questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from comfyloop.curate.filters import _texts
from comfyloop.curate.groups import Pictures
from comfyloop.curate.rulings import KEEP, UPLOADED, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft
from comfyloop.records import Sample


class Deduplicator(Options):
    words: float = Field(
        default=0.8, gt=0, le=1, description="Share of words from which on two answers say the same."
    )


def judge(drafts: Sequence[Draft], ground: Ground, options: Deduplicator) -> Iterator[Ruling]:
    pictures = Pictures(lambda sha: ground.pictures.look(sha))
    firsts: dict[object, list[tuple[Draft, frozenset[str]]]] = {}
    for draft in drafts:
        shown = draft.pictures
        if draft.sample.origin != UPLOADED or not shown:
            yield KEEP
            continue
        key = (_asked(draft.sample), tuple(pictures.same(sha) for sha in shown))
        said = frozenset(_texts.words(draft.sample.answer))
        there = firsts.setdefault(key, [])
        earlier = next((one for one, words in there if _shared(words, said) >= options.words), None)
        if earlier is not None and earlier.pictures != shown:
            yield Ruling("drop", "the same picture and words as " + ", ".join(earlier.sample.feedback))
            continue
        there.append((draft, said))
        yield KEEP


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
    options=Deduplicator,
)
