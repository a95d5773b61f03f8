"""The made-up brand of the demo: style guide, copy and prompts with their pictures, captions in its voice."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comfyloop.sources.builtin.declared import EXAMPLES, Builtin, asked, drawn, write_rows


def make(folder: Path, cache: Path) -> None:
    shutil.copytree(EXAMPLES / "brand" / "pictures", folder / "pictures")
    write_rows(folder, _rows(folder))


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    guide = (EXAMPLES / "brand" / "guide.md").read_text("utf-8")
    parts = re.split(r"^## +(.+)$", guide, flags=re.MULTILINE)[1:]
    for question, text in zip(parts[::2], parts[1::2], strict=True):
        yield asked(question.strip(), text.strip())
    told = json.loads((EXAMPLES / "brand" / "brand.json").read_text("utf-8"))
    for product in [*told["catalogue"], *told["corrections"]]:
        name = product["name"]
        words = {"article": "an" if name[0] in "aeiou" else "a", "name": name}
        picture = f"pictures/{name.replace(' ', '-')}.webp"
        there = (folder / picture).is_file()
        yield asked(told["copy_question"].format(**words), product["copy"], picture if there else "")
        prompt = told["prompt"].format(**words)
        yield asked(told["prompt_question"].format(**words), prompt)
        if there:
            yield drawn(prompt, picture)
    for scene in json.loads((EXAMPLES / "brand.json").read_text("utf-8"))["corrections"]:
        yield asked(scene["question"], scene["edited"])


BUILTIN = Builtin(
    name="brand",
    what="A made-up brand, Slow Goods: its guide, its copy, its prompts and its pictures",
    licence="Apache-2.0",
    rows=133,
    bytes=327_052,
    modalities=("text", "image"),
    languages=("en",),
    make=make,
)
