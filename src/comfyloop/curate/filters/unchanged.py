"""An edit that leaves the answer as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfyloop.curate.samples import Draft
from comfyloop.settings import Settings

REASON = "unchanged"
SENTENCE = "the edit is the same as what was there before"


def find(drafts: Sequence[Draft], settings: Settings) -> Iterator[tuple[int, str]]:
    """White space at the ends does not count as a change; inside the text it does."""
    for index, draft in enumerate(drafts):
        if draft.replaces is not None and draft.replaces.strip() == draft.sample.answer.strip():
            yield index, ""
