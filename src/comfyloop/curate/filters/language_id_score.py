"""Answers in another language than those that are set. Which script a text is in is counted first; for languages that
share one, lingua decides where it is installed (`comfyloop[languages]`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from pydantic import Field

from comfyloop.curate.filters import _texts
from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft

HAN_SHARE = 0.3
"""Share of Chinese characters among letters from which on a text is Chinese, whatever names it holds: one character
says as much as two to four letters do."""
FEWEST = 12
"""Letters of a text that tell its language."""


class LanguageOptions(Options):
    languages: tuple[str, ...] = Field(
        default=(), description="ISO 639-1 codes of the languages that are wanted, as `en`; none: any."
    )


def judge(drafts: Sequence[Draft], ground: Ground, options: LanguageOptions) -> Iterator[Ruling]:
    if not options.languages:
        yield from (KEEP for _ in drafts)
        return
    wanted = {code.lower() for code in options.languages}
    by = "lingua" if find_spec("lingua") else "script"
    for draft, code in zip(
        drafts, ground.measurements.of_samples(f"language/{by}/1", drafts, _languages), strict=True
    ):
        if not code:
            yield Ruling("unmeasured", "lingua is not installed, or the text is too short to tell")
        elif code in wanted:
            yield KEEP
        else:
            yield against(draft, f"the answer is in {code!r}")


def _languages(drafts: Sequence[Draft]) -> Iterator[str]:
    return (language_of(draft.sample.answer) for draft in drafts)


def language_of(text: str) -> str:
    """ISO 639-1; empty where it cannot be told."""
    text = text[: _texts.MOST_CHARS]
    if code := script_of(text):
        return code
    if sum(char.isalpha() for char in text) < FEWEST or (detector := _detector()) is None:
        return ""
    found = detector.detect_language_of(text)
    return found.iso_code_639_1.name.lower() if found is not None else ""


def script_of(text: str) -> str:
    """The language that has a script to itself; empty for others."""
    letters = sum(char.isalpha() for char in text)
    kana, han = len(_texts.KANA.findall(text)), len(_texts.HAN.findall(text))
    if not letters:
        return ""
    if len(_texts.HANGUL.findall(text)) >= HAN_SHARE * letters:
        return "ko"
    if kana + han >= HAN_SHARE * letters:
        return "ja" if kana >= 0.2 * (kana + han) else "zh"
    return ""


@cache
def _detector() -> Any:
    """None where lingua is not installed."""
    if find_spec("lingua") is None:
        return None
    from lingua import LanguageDetectorBuilder
    from lingua import LanguageOptions as Lingua

    names = "ENGLISH FRENCH GERMAN SPANISH ITALIAN PORTUGUESE DUTCH POLISH RUSSIAN UKRAINIAN TURKISH VIETNAMESE ARABIC"
    return LanguageDetectorBuilder.from_languages(*(getattr(Lingua, name) for name in names.split())).build()


FILTER = Filter(
    "language_id_score", "the answer is in another language", judge, rank=128, options=LanguageOptions
)
