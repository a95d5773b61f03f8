"""The spec and the result of a comparison of two image adapters: a run that takes no steps."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

from pydantic import Field

from comfyloop.records import Record, Scores
from comfyloop.train.specs.image import ImageTrainSpec

SEEN_FILE, SHEET_FILE = "seen.json", "sheet.png"
SIDES = ("live", "candidate")


def picture_file(folder: Path, side: int, id: str) -> Path:
    """Where a drawn picture of one of the SIDES is."""
    return folder / SIDES[side] / f"{id}.png"


def seed_of(id: str) -> int:
    """The seed for drawing a row: the same for both versions, and for every renderer."""
    return random.Random(id).getrandbits(31)


class JudgeSpec(Record):
    """A comparison of two versions of the image side on held-out pictures. Paths are as in other specs."""

    recipe: Literal["judge"] = "judge"
    image: ImageTrainSpec = Field(
        description="How the side is trained: model, sizes and captions are the same here, and the pictures of "
        "its `train` are those that the person kept. Its adapter counts for nothing."
    )
    live: str | None = Field(default=None, description="LoRA file; None: the model as it is.")
    candidate: str | None = Field(default=None, description="The same.")
    kept: str | None = Field(default=None, description="Held-out kept pictures, as `train` has them.")
    pairs: str | None = Field(default=None, description="Held-out pairs.")
    taste: str | None = Field(
        default=None, description="Pairs that are not held out, from which the person's taste is learnt."
    )
    chosen: tuple[str, ...] = Field(default=(), description="Ids of the rows that are looked at.")
    written: dict[str, tuple[str, str]] = Field(
        default={}, description="By a row's id, the prompts that live and candidate wrote for its brief."
    )
    drawn: tuple[str, ...] = Field(default=(), description="Ids of the rows whose prompts are drawn.")
    pictures: str | None = Field(
        default=None,
        description="Folder of pictures that were drawn already (`picture_file`); None: draw them.",
    )
    drawn_by: str = Field(default="", description="Who drew them, as a sentence for the report.")
    steps: int = Field(default=20, ge=1, description="Euler steps a picture.")
    guidance: float = Field(default=5.0, ge=1)
    clip: str | None = Field(
        default=None, description="CLIP model that says how alike pictures and texts are; None: `viewer`."
    )
    viewer: str | None = Field(
        default=None,
        description="Vision-language model that says it instead, by how likely it finds the text.",
    )

    def prompts(self, id: str, own: str) -> tuple[str, str]:
        """The prompts for live and candidate: what each wrote, or the person's `own` prompt if there was no
        brief."""
        return self.written.get(id, (own, own))

    @property
    def model(self) -> str:
        return self.image.model

    @property
    def dtype(self) -> str:
        return self.image.dtype

    @property
    def nice(self) -> int:
        return self.image.nice

    @property
    def threads(self) -> int:
        return self.image.threads

    @property
    def step_aside_after(self) -> float | None:
        return self.image.step_aside_after

    @property
    def memory_gb(self) -> float:
        return self.image.memory_gb

    @property
    def world_size(self) -> int:
        return 1

    def data_files(self) -> list[str]:
        files = (self.image.train, self.kept, self.pairs, self.taste)
        return [file for file in files if file is not None and Path(file).exists()]

    def weights(self) -> list[str]:
        others = (self.live, self.candidate, self.clip, self.viewer)
        return [*self.image.weights(), *(path for path in others if path is not None)]


class JudgeFindings(Record):
    """The result of a comparison."""

    scores: dict[str, Scores] = Field(
        description="By a row's id; pairs of (live, candidate) by what was measured."
    )
    by: str = Field(default="", description="What looked at the drawn pictures; empty: nothing could.")
    taste: str = Field(default="", description="How well the person's taste is known, as a sentence.")
