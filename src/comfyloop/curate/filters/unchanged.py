"""An edit that leaves the answer as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft
from comfyloop.texts import as_seen


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    """White space at the ends does not count as a change; inside the text it does, where it can be seen."""
    for draft in drafts:
        same = draft.replaces is not None and as_seen(draft.replaces) == as_seen(draft.sample.answer)
        yield Ruling("drop") if same else KEEP


FILTER = Filter("unchanged", "the edit is the same as what was there before", judge, rank=20, final=True)
