"""General questions with short right answers, in English and in Chinese, written for ComfyLoop.

None of them is asked by the gate: what it asks must never be learnt.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from comfyloop.sources.builtin.declared import Builtin, asked, write_rows

_FILE = Path(__file__).with_name("questions.json")


def make(language: str, folder: Path, cache: Path) -> None:
    told = json.loads(_FILE.read_text("utf-8"))[language]
    write_rows(folder, [asked(question, answer) for question, answer in told])


def _builtin(name: str, language: str, what: str) -> Builtin:
    return Builtin(
        name=name,
        what=what,
        licence="Apache-2.0",
        rows=30,
        bytes=6_400,
        modalities=("text",),
        languages=(language,),
        make=partial(make, language),
    )


BUILTIN_EN = _builtin("questions-en", "en", "General questions with short right answers, English")
BUILTIN_ZH = _builtin("questions-zh", "zh", "General questions with short right answers, Chinese")
