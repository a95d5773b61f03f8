"""Answers beyond `settings.max_answer_chars`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    most = ground.settings.max_answer_chars
    for draft in drafts:
        longest = max(len(draft.sample.answer), len(draft.sample.rejected or ""))
        if longest > most:
            yield Ruling("drop", f"{longest} characters, {most} are allowed", longest)
        else:
            yield KEEP


FILTER = Filter("too_long", "the text is longer than max_answer_chars", judge, rank=40, final=True)
