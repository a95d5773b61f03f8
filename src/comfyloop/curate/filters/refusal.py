"""Answers that decline: one that slipped into a set teaches to decline what the model could do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft

BEGINNING = 300
"""Characters of an answer in which a refusal stands: at its beginning."""

_DO = (
    "help (?:with|you)|assist|provide|comply|answer|identify|describe|see|view|access|create|generate|process|continue|"
    "discuss|analy[sz]e|determine|share|produce|write"
)
REFUSALS = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi(?:['’]m| am)(?: very| so)? sorry,? (?:but\b|i can(?:no|['’])t\b)"
    rf"|\bi (?:can(?:no|['’])t|can not|won['’]t|am unable to|am not able to) (?:{_DO})\b"
    rf"|\bi['’]m (?:unable|not able) to (?:{_DO})\b"
    r"|\bunable to (?:assist|help|comply)\b|\bagainst my (?:guidelines|programming)\b"
    r"|(?:抱歉|对不起)[，,。 ]{0,2}(?:但|不过)?我?(?:无法|不能|没办法)"
    r"|我(?:无法|不能)(?:提供|帮助|协助|回答|识别|描述|查看|处理|满足|生成)"
    r"|作为(?:一个|一名|一款)?(?:ai|人工智能|(?:大型?)?语言模型)",
    re.IGNORECASE,
)


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    for draft in drafts:
        found = draft.sample.label is not False and REFUSALS.search(draft.sample.answer[:BEGINNING])
        yield against(draft, f"it says {found[0][:40]!r}") if found else KEEP


FILTER = Filter("refusal", "the answer declines to answer", judge, rank=125)
