"""The same example twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft
from comfyloop.records import Sample


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    """The first one stays. Runs of white space do not make two texts different."""
    first: dict[object, Draft] = {}
    for draft in drafts:
        earlier = first.setdefault(_key(draft.sample), draft)
        yield (KEEP if earlier is draft else Ruling("drop", "same as " + ", ".join(earlier.sample.feedback)))


def _key(sample: Sample) -> object:
    turns = tuple((m.role, m.images, " ".join(m.text.split())) for m in sample.messages)
    rejected = None if sample.rejected is None else " ".join(sample.rejected.split())
    return sample.kind, turns, rejected, sample.label, sample.picked, sample.over


FILTER = Filter("duplicate", "the same example was there already", judge, compares=True, final=True)
