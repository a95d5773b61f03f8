"""The same example twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfyloop.curate.samples import Draft
from comfyloop.records import Sample
from comfyloop.settings import Settings

REASON = "duplicate"
SENTENCE = "the same example was there already"


def find(drafts: Sequence[Draft], settings: Settings) -> Iterator[tuple[int, str]]:
    """The first one stays. Runs of white space do not make two texts different."""
    first: dict[object, Draft] = {}
    for index, draft in enumerate(drafts):
        earlier = first.setdefault(_key(draft.sample), draft)
        if earlier is not draft:
            yield index, "same as " + ", ".join(earlier.sample.feedback)


def _key(sample: Sample) -> object:
    turns = tuple((m.role, m.images, " ".join(m.text.split())) for m in sample.messages)
    rejected = None if sample.rejected is None else " ".join(sample.rejected.split())
    return sample.kind, turns, rejected, sample.label, sample.picked, sample.over
