"""Texts that stand where an answer was to be written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft

_WHOLE = re.compile(
    r"(?:todo|tbd|tba|fixme|n\s?/\s?a|nan|null|none given|undefined|placeholder|caption|description|answer|"
    r"test(?:ing)?(?:\s?\d{1,4})?|asdf\w{0,12}|qwerty\w{0,12}|foo(?:\s?bar)?|blah(?:[\s,]{0,3}blah){0,9}|x{2,20}|-+|\?+|"
    r"\.{2,}|…+|image ?\d{0,5}|img[_-]?\d{0,9}|untitled(?:[ _-]?\d{1,4})?|no (?:caption|description|answer|text)|"
    r"待补充|待填|待定|无描述|暂无(?:描述)?|占位(?:符|文本)?|测试(?:文本)?|此处(?:填写|输入).{0,20})[.!。！]?",
    re.IGNORECASE,
)
_PART = re.compile(
    r"lorem ipsum|\{\{\s{0,5}[\w .-]{1,60}\}\}|<(?:insert|your|caption|description|answer)\b[^<>]{0,60}>"
    r"|\[(?:insert|your|add|todo|caption|description|placeholder)\b[^\[\]]{0,60}\]",
    re.IGNORECASE,
)


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    for draft in drafts:
        answer = draft.sample.answer.strip()
        found = _WHOLE.fullmatch(answer) if len(answer) <= 60 else None
        found = found or _PART.search(answer)
        yield against(draft, f"{found[0][:40]!r} stands for an answer") if found else KEEP


FILTER = Filter("placeholder", "the answer is still to be written", judge, rank=124)
