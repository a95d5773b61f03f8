"""No answer, or no question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft
from comfyloop.texts import is_blank


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    for draft in drafts:
        last = draft.sample.messages[-1]
        if is_blank(last.text):
            yield Ruling("drop", f"the {last.role}'s text is empty")
        elif draft.sample.kind in ("sft", "preference", "labelled") and last.role != "assistant":
            yield Ruling("drop", f"the last message is the {last.role}'s, not the assistant's")
        else:
            yield KEEP


FILTER = Filter("empty", "there was no text to learn from", judge, rank=10, final=True)
