"""The same example twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    """The first one stays. Runs of white space do not make two texts different."""
    first: dict[bytes, Draft] = {}
    for draft in drafts:
        earlier = first.setdefault(draft.content, draft)
        yield (KEEP if earlier is draft else Ruling("drop", "same as " + ", ".join(earlier.sample.feedback)))


FILTER = Filter("duplicate", "the same example was there already", judge, compares=True, final=True)
