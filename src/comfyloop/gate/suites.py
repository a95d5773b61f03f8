"""The forgetting suite: general questions, and what the base model itself answered them.

A version that has learnt a style should still find the base model's answers to unrelated questions about as
likely as before. The questions are not those that are replayed in training (curate/general_questions.json).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

ANSWER_TOKENS = 64
_SENTENCE_END = re.compile(r"(?<!\d)[.!?][\"'”’)]*(?=\s|$)|[.!?]$|[。!?]")


def general_questions() -> tuple[str, ...]:
    text = files("comfyloop.gate").joinpath("general_suite.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def cached_answers(base_model: str, cache_dir: Path | None) -> dict[str, str]:
    """What the base model answered before; empty at first, or when there is no cache."""
    try:
        found = json.loads(_file(base_model, cache_dir).read_text(encoding="utf-8")) if cache_dir else {}
    except (FileNotFoundError, ValueError):  # a torn cache is only a reason to ask again
        return {}
    return found if isinstance(found, dict) else {}


def keep_answers(base_model: str, cache_dir: Path, answers: dict[str, str]) -> None:
    file = _file(base_model, cache_dir)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(answers, ensure_ascii=False, indent=1), encoding="utf-8")
    part.replace(file)


def ask_base(question: str, answer: Callable[[str, int], str]) -> str:
    """The base model's answer cut to whole sentences: an end made by the length limit is none."""
    return whole_sentences(answer(question, ANSWER_TOKENS))


def whole_sentences(text: str) -> str:
    """The text up to its last sentence end, or all of it when it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text.strip())]
    return text.strip()[: ends[-1]] if ends else text.strip()


def _file(base_model: str, cache_dir: Path) -> Path:
    return cache_dir / "gate" / f"{hashlib.sha256(base_model.encode()).hexdigest()[:32]}.json"
