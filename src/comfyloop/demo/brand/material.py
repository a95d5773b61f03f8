"""The made-up brand of the demo: its style guide, its catalogue, and what its person will correct."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from comfyloop.demo.scenes import EXAMPLES

FOLDER = EXAMPLES / "brand"

Colour = tuple[int, int, int]


class Product(NamedTuple):
    name: str
    copy: str  # the brand's own words for it
    ask_copy: str
    ask_prompt: str
    prompt: str  # the brand's own prompt for its poster

    @property
    def file(self) -> str:
        return self.name.replace(" ", "-")

    @property
    def picture(self) -> Path:
        """The brand's own; there is none of products that are never shown."""
        return FOLDER / "pictures" / f"{self.file}.webp"


class Brand(NamedTuple):
    name: str
    palette: dict[str, Colour]  # "cream" is the paper, "orange" and "teal" lie on it
    guide: list[tuple[str, str]]  # questions that the style guide answers, and its answers
    catalogue: Sequence[Product]  # uploaded with picture and copy
    corrections: Sequence[Product]  # asked for after the first turn; copy, prompt and picture are corrected
    held_out: Sequence[Product]  # never sent, only asked for before and after


def load() -> Brand:
    material = json.loads((FOLDER / "brand.json").read_text(encoding="utf-8"))

    def product(row: dict[str, str]) -> Product:
        name = row["name"]
        words = {"article": "an" if name[0] in "aeiou" else "a", "name": name}
        forms = (material[form].format(**words) for form in ("copy_question", "prompt_question", "prompt"))
        return Product(name, row["copy"], *forms)

    return Brand(
        material["brand"],
        {name: _colour(code) for name, code in material["palette"].items()},
        _sections((FOLDER / "guide.md").read_text(encoding="utf-8")),
        *([product(row) for row in material[part]] for part in ("catalogue", "corrections", "held_out")),
    )


def _colour(code: str) -> Colour:
    red, green, blue = bytes.fromhex(code.removeprefix("#"))
    return red, green, blue


def _sections(guide: str) -> list[tuple[str, str]]:
    """Each second-level heading with the text under it."""
    parts = re.split(r"^## +(.+)$", guide, flags=re.MULTILINE)[1:]
    return [(heading.strip(), text.strip()) for heading, text in zip(parts[::2], parts[1::2], strict=True)]
