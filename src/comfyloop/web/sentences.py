"""Sentences that the stages say, in the reader's language: found again by their form in `words/sentences.zh.json`.

A report is written once, in English, and read for years; what it says is data by then. Its sentences have few forms,
so a form (`Only {items} are there to judge by; {needed} are needed.`) is matched and its values put into the other
language's. What has no form is shown as it is.
"""

from __future__ import annotations

import json
import re
from functools import cache

from comfyloop.web.language import FOLDER


def say(sentence: str, language: str) -> str:
    """A text of one or more sentences in `language`, as far as their forms are known."""
    if language == "en" or not sentence:
        return sentence
    return _said(sentence, language)


@cache
def forms(language: str) -> dict[str, str]:
    """The forms that are known in a language, and what they are there; of English none are needed."""
    if language == "en":
        return {}
    known: dict[str, str] = json.loads((FOLDER / f"sentences.{language}.json").read_text("utf-8"))
    return known


@cache
def _forms(language: str) -> list[tuple[re.Pattern[str], str]]:
    return [(pattern(form), other) for form, other in forms(language).items()]


def pattern(form: str) -> re.Pattern[str]:
    """A form as an expression; the same name twice stands for the same words, `{s}` for the s of several things."""
    parts = re.split(r"\{(\w+)\}", form)
    seen: set[str] = set()
    made = ""
    for place, part in enumerate(parts):
        if place % 2 == 0:
            made += re.escape(part)
        elif part == "s":
            made += "s?"
        else:
            made += f"(?P={part})" if part in seen else f"(?P<{part}>.+?)"
            seen.add(part)
    return re.compile(made, re.DOTALL)


def _said(text: str, language: str) -> str:
    whole = _one(text, language)
    if whole is not None:
        return whole
    # Several sentences: the longest beginning whose form is known, then what is left.
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)]
    for end in reversed(ends[:-1]):
        if (said := _one(text[:end], language)) is not None:
            return said + _said(text[end:].strip(), language)
    if len(ends) > 1:
        first = ends[0]
        return f"{text[:first]} {_said(text[first:].strip(), language)}"
    return text


def _one(sentence: str, language: str) -> str | None:
    for form, other in _forms(language):
        if match := form.fullmatch(sentence):
            return other.format(
                **{name: _one(value, language) or value for name, value in match.groupdict().items()}
            )
    return None
