"""What a built-in data set declares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfyloop

Make = Callable[[Path, Path], None]
"""Fills an empty folder; the second is where what was downloaded is kept for the next time."""

EXAMPLES = Path(comfyloop.__file__).parent / "demo" / "examples"


@dataclass(frozen=True)
class Builtin:
    name: str
    what: str
    licence: str
    rows: int
    bytes: int  # what is downloaded or copied for it, about
    modalities: tuple[str, ...]
    languages: tuple[str, ...]
    make: Make


def write_rows(folder: Path, rows: Iterable[dict[str, Any]], name: str = "data.jsonl") -> None:
    with (folder / name).open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def asked(question: str, answer: str, picture: str = "") -> dict[str, Any]:
    """A question, about a picture or not, and its answer; both are text whatever they hold."""
    content: list[dict[str, str]] = [{"type": "text", "text": question}]
    images = {"images": [picture]} if picture else {}
    if picture:
        content.insert(0, {"type": "image"})
    answered = [{"type": "text", "text": answer}]
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answered}],
        **images,
    }


def drawn(prompt: str, picture: str) -> dict[str, Any]:
    """A picture and the prompt that draws it."""
    said = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    return {"messages": said, "chosen": {"path": picture}}
