"""Derives preferences in words from edits, by rules that a person can understand.

A rule compares answers with their edits. It applies only if nearly all edits agree (SHARE) and most of the original
answers did not, and it names the edits that support it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

LEAST = 5
"""Edits; fewer say nothing."""
SHARE = 0.8
"""Of the edits, so many agree."""
NEWEST = 200
"""Edits that are looked at."""

_HAN = re.compile(r"[\u3400-\u9fff]")
_LATIN = re.compile(r"[A-Za-z]+")
_WORD = re.compile(r"[^\W_\u3400-\u9fff]+")
_LETTER = re.compile(r"[^\W_\u3400-\u9fff]")  # of a word that is written with letters
_LIST = re.compile(r"^\s*([-*•#]|\d+[.)])\s", re.MULTILINE)
_EMOJI = re.compile(r"[\u2600-\u27bf\U0001f300-\U0001faff]")
_SENTENCES = re.compile(r"[^.!?。！？\n]+")
_LONGEST_QUOTE = 80


class EditPair(NamedTuple):
    """An answer as it was, what a person made of it, and the feedback that says so."""

    seen: str
    wanted: str
    feedback: str


class Written(NamedTuple):
    """A preference that a rule derived, with the name of the rule."""

    id: str
    text: str
    of: int  # edits that were looked at
    feedback: tuple[str, ...]  # those of them that show it


def written(pairs: Sequence[EditPair]) -> list[Written]:
    """All preferences that the rules derive from these edits, given newest last."""
    pairs = pairs[-NEWEST:]
    if len(pairs) < LEAST:
        return []
    chinese = sum(_is_chinese(pair.wanted) for pair in pairs) >= SHARE * len(pairs)
    sentences = [
        _length(pairs, chinese),
        _quote(pairs, "begins", str.startswith, lambda text: text, chinese),
        _quote(pairs, "ends", str.endswith, lambda text: text[::-1], chinese),
        *(_habit(pairs, *habit, chinese) for habit in _HABITS),
    ]
    return [each for each in sentences if each is not None]


_Holds = Callable[[str], bool]
_HABITS: tuple[tuple[str, str, str, _Holds], ...] = (
    ("chinese", "In Chinese.", "用中文。", lambda text: _is_chinese(text)),
    ("english", "In English.", "用英文。", lambda text: not _HAN.search(text) and bool(_LATIN.search(text))),
    ("no_exclamation", "No exclamation marks.", "不用感叹号。", lambda text: not re.search("[!！]", text)),
    ("no_emoji", "No emoji.", "不用表情符号。", lambda text: not _EMOJI.search(text)),
    ("no_lists", "No lists and headings.", "不用列表和标题。", lambda text: not _LIST.search(text)),
    ("one_sentence", "One sentence.", "只用一句话。", lambda text: len(_sentences(text)) == 1),
    ("one_paragraph", "One paragraph.", "只用一段。", lambda text: "\n" not in text.strip()),
    ("lower_case", "All in lower case.", "全部小写。", lambda text: bool(_LATIN.search(text)) and text == text.lower()),
)  # fmt: skip
"""Name, the preference in words (English, Chinese), whether a text holds to it."""


def _habit(
    pairs: Sequence[EditPair], id: str, english: str, chinese: str, holds: _Holds, in_chinese: bool
) -> Written | None:
    before = sum(holds(pair.seen) for pair in pairs)
    shown = [pair.feedback for pair in pairs if holds(pair.wanted)]
    if len(shown) < SHARE * len(pairs) or before > len(pairs) / 2:
        return None
    return Written(id, chinese if in_chinese else english, len(pairs), tuple(shown))


def _length(pairs: Sequence[EditPair], chinese: bool) -> Written | None:
    usual = median(_words(pair.wanted) for pair in pairs)
    shown = [pair.feedback for pair in pairs if abs(_words(pair.wanted) - usual) <= max(2, 0.4 * usual)]
    before = median(_words(pair.seen) for pair in pairs)
    if len(shown) < SHARE * len(pairs) or abs(before - usual) <= 0.25 * usual:
        return None
    text = f"大约 {usual:.0f} 个字。" if chinese else f"About {usual:.0f} words."
    return Written("length", text, len(pairs), tuple(shown))


def _quote(
    pairs: Sequence[EditPair],
    id: str,
    holds: Callable[[str, str], bool],
    turned: Callable[[str], str],
    chinese: bool,
) -> Written | None:
    """The common beginning of nearly all edits (or ending, if `turned` reverses texts)."""
    texts = [turned(pair.wanted.strip())[:_LONGEST_QUOTE] for pair in pairs]
    same = ""
    for length in range(1, _LONGEST_QUOTE + 1):
        starts = Counter(text[:length] for text in texts if len(text) >= length and text.startswith(same))
        best, count = starts.most_common(1)[0] if starts else ("", 0)
        if count < SHARE * len(pairs):
            break
        same = best
    quote = _whole_words(same, texts)
    said = turned(quote).strip()
    if sum(letter.isalnum() for letter in said) < (1 if _HAN.search(said) else 3):
        return None
    before = sum(holds(pair.seen.strip(), said) for pair in pairs)
    shown = [pair.feedback for pair in pairs if holds(pair.wanted.strip(), said)]
    if before > len(pairs) / 2:
        return None
    place = {"begins": "开头", "ends": "结尾"}[id]
    text = f"以“{said}”{place}。" if chinese else f'{id.capitalize()} with "{said}".'
    return Written(id, text, len(pairs), tuple(shown))


def _whole_words(start: str, texts: Sequence[str]) -> str:
    """`start` without a word of which it has the first letters only."""

    def cut(text: str) -> bool:
        return bool(_LETTER.match(text, len(start))) and bool(_LETTER.match(start[-1:]))

    if any(cut(text) for text in texts if text.startswith(start)):
        return start.rstrip("".join(filter(_LETTER.match, start)))
    return start


def _is_chinese(text: str) -> bool:
    return len(_HAN.findall(text)) > len(_LATIN.findall(text))


def _words(text: str) -> int:
    """Words, or characters of Chinese."""
    return len(_HAN.findall(text)) + len(_WORD.findall(text))


def _sentences(text: str) -> list[str]:
    return [part for part in _SENTENCES.findall(text) if part.strip()]
