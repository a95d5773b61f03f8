"""Answers beyond `settings.max_answer_chars`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfyloop.curate.samples import Draft
from comfyloop.settings import Settings

REASON = "too_long"
SENTENCE = "the text is longer than max_answer_chars"


def find(drafts: Sequence[Draft], settings: Settings) -> Iterator[tuple[int, str]]:
    for index, draft in enumerate(drafts):
        longest = max(len(draft.sample.answer), len(draft.sample.rejected or ""))
        if longest > settings.max_answer_chars:
            yield index, f"{longest} characters, {settings.max_answer_chars} are allowed"
