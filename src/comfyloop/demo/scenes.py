"""The demo's scenes: questions, what a person would have answered, and the pictures they are about."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(str(files("comfyloop.demo").joinpath("examples")))


class Correction(NamedTuple):
    scene: str
    question: str
    picture: Path | None
    edited: str  # the person's own answer


class Scene(NamedTuple):
    name: str
    title: str
    voice: str
    corrections: list[Correction]
    held_out: list[Correction]  # never sent, only asked before and after


def load() -> list[Scene]:
    return [_scene(name) for name in ("pet", "brand")]


def _scene(name: str) -> Scene:
    content = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))

    def example(row: dict[str, str]) -> Correction:
        picture = EXAMPLES / "pictures" / row["picture"] if "picture" in row else None
        return Correction(name, row["question"], picture, row["edited"])

    return Scene(
        name,
        content["title"],
        content["voice"],
        [example(row) for row in content["corrections"]],
        [example(row) for row in content["held_out"]],
    )


GENERAL = ("What is the capital of France?", "Name three colours.", "How do plants make food?")
"""Asked before and after: what has nothing to do with the corrections stays as it was."""
