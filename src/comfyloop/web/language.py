"""The words of the pages, a catalogue a language: what is missing in one is a fault that the tests find."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = {"en": "English", "zh": "中文"}
FOLDER = Path(__file__).parent / "words"


@cache
def catalogue(language: str) -> Mapping[str, str]:
    words: dict[str, str] = json.loads((FOLDER / f"{language}.json").read_text("utf-8"))
    return words


class Words:
    """What a key says in one language: `words("home.learned", n=3)`. Of two forms `key.one` is that of one thing."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._words = catalogue(language)

    def __call__(self, key: str, **values: Any) -> str:
        single = f"{key}.one"
        said = self._words[single] if values.get("n") == 1 and single in self._words else self._words[key]
        return said.format(**values) if values else said

    def of(self, prefix: str) -> dict[str, str]:
        """All words whose keys begin so, by the rest of the key: what a script says."""
        return {key.removeprefix(prefix): said for key, said in self._words.items() if key.startswith(prefix)}

    def known(self, key: str, otherwise: str) -> str:
        """The words of a key that data made up, or what is said where the catalogue has none."""
        return self._words.get(key, otherwise)


def preferred(chosen: str, accepted: str) -> str:
    """The language that a person chose, else the first of those that the browser asks for that there is."""
    if chosen in LANGUAGES:
        return chosen
    weighed = []
    for place, part in enumerate(accepted.split(",")):
        name, _, quality = part.partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            continue
        weighed.append((-weight, place, name.strip().lower().partition("-")[0]))
    return next((name for _, _, name in sorted(weighed) if name in LANGUAGES), "en")
