"""The pets of the demo: an artist's animals on holiday, each with its picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from comfyloop.sources.builtin.declared import EXAMPLES, Builtin, asked, write_rows


def make(folder: Path, cache: Path) -> None:
    shutil.copytree(EXAMPLES / "pictures", folder / "pictures")
    told = json.loads((EXAMPLES / "pet.json").read_text("utf-8"))
    scenes = [*told["corrections"], *told["held_out"]]
    write_rows(
        folder,
        [asked(scene["question"], scene["edited"], f"pictures/{scene['picture']}") for scene in scenes],
    )


BUILTIN = Builtin(
    name="pet",
    what="Pets on holiday: a picture of each, and what an artist says that it does there",
    licence="CC0 (the cat), MIT (Fluent Emoji), Apache-2.0 (words)",
    rows=16,
    bytes=99_164,
    modalities=("text", "image"),
    languages=("en",),
    make=make,
)
