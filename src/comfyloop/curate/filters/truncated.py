"""Answers that end in the midst of something: a row that was cut off at a length, an answer that ran out of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import Field

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft

HANGING = re.compile(
    r"(?:\b(?:a|an|the|of|with|and|or|is|are|was|to|its|their|his|her|for|from|by|at|into|on|in)|[,，、:：;；(（\[{\-–—/&]"
    r"|[的和与在是把被])$",
    re.IGNORECASE,
)
"""What few answers end in."""
ENDED = re.compile(r"[.!?…。！？:：)）\]}\"'”’」』*`>|~]$|[#@]\S+$|[^\w\s]$|https?://\S+$")


class Truncated(Options):
    habit: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Share of the answers of as many words that end in a mark, from which on one without is cut off.",
    )
    least: int = Field(default=20, ge=2, description="Answers that show a habit.")


def judge(drafts: Sequence[Draft], ground: Ground, options: Truncated) -> Iterator[Ruling]:
    """Only where the others end in a mark is one without a mark cut off: captions of three words have none, and
    "Turn it on" is whole. There a person is asked, whoever sent it."""
    read = [_read(draft) for draft in drafts]
    sentences = [one.whole for one in read if one.prose]
    habit = len(sentences) >= options.least and sum(sentences) >= options.habit * len(sentences)
    for draft, one in zip(drafts, read, strict=True):
        if not one.prose or (one.whole and not one.hangs):
            yield KEEP
            continue
        answer = draft.sample.answer.strip()
        if not answer:
            yield KEEP
        elif habit and not one.whole:
            yield against(draft, f"it ends in {answer[-20:]!r}, the others in a mark")
        elif one.hangs:
            yield Ruling("unsure", f"it ends in {answer[-20:]!r}")
        else:
            yield KEEP


class _Read(NamedTuple):
    prose: bool
    whole: bool  # it ends in a mark
    hangs: bool  # it ends in a word after which something comes


def _read(draft: Draft) -> _Read:
    read: _Read | None = draft.noted.get("ending")
    if read is None:
        answer = draft.sample.answer.strip()
        hangs = len(answer) > 4 and bool(HANGING.search(answer[-40:]))
        read = draft.noted["ending"] = _Read(_is_prose(draft), bool(ENDED.search(answer[-200:])), hangs)
    return read


def _is_prose(draft: Draft) -> bool:
    sample = draft.sample
    image = sample.kind in ("captioned_image", "image_pair") or sample.slice in ("prompt", "graph")
    return not image and sample.label is not False


FILTER = Filter("truncated", "the answer is cut off", judge, rank=126, compares=True, options=Truncated)
