"""What a model wrote, such as captions: it is learned once a person has accepted or fixed it in the review queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    """After all others, so that whoever looks at it sees what they say of it."""
    for draft in drafts:
        yield Ruling("ask") if draft.to_review and draft.answered is None else KEEP


FILTER = Filter(
    "unreviewed", "a model wrote it, and no person has looked at it yet", judge, rank=300, compares=True
)
