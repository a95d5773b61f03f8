"""Pictures by the image model with a version's LoRA on it, drawn as a ComfyUI would that has just fetched it.

Each call of `Painter.draw` is a process of its own (`paint.py`): what it takes of memory is free again before the
next training begins.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from comfyloop.errors import RunFailed


class Drawing(NamedTuple):
    """A picture to be drawn: the same prompt and seed begin with the same noise, whatever the LoRA."""

    prompt: str
    seed: int
    file: str  # name of the PNG file


class Painter:
    """Draws into `folder`.

    Args:
        model: A checkpoint or a diffusers folder.
        cache: Folder of text states, shared with training.
    """

    def __init__(self, model: str, cache: Path, folder: Path) -> None:
        self._job = {"model": model, "cache": str(cache), "folder": str(folder)}
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self, drawings: Sequence[Drawing], lora: Path | None) -> list[Path]:
        """The pictures' files; `lora` None is the model as it came.

        Raises:
            RunFailed: They could not be drawn; the reason is the process's own last line.
        """
        job = self.folder / "job.json"
        fields = {"lora": None if lora is None else str(lora), "drawings": [d._asdict() for d in drawings]}
        job.write_text(json.dumps(self._job | fields), encoding="utf-8")
        command = [sys.executable, "-m", "comfyloop.demo.brand.paint", str(job)]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RunFailed(f"The pictures could not be drawn: {last}")
        return [self.folder / drawing.file for drawing in drawings]
