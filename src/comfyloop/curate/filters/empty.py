"""No answer, or no question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfyloop.curate.samples import Draft
from comfyloop.settings import Settings

REASON = "empty"
SENTENCE = "there was no text to learn from"


def find(drafts: Sequence[Draft], settings: Settings) -> Iterator[tuple[int, str]]:
    for index, draft in enumerate(drafts):
        last = draft.sample.messages[-1]
        if not last.text.strip():
            yield index, f"the {last.role}'s text is empty"
        elif draft.sample.kind in ("sft", "preference", "labelled") and last.role != "assistant":
            yield index, f"the last message is the {last.role}'s, not the assistant's"
