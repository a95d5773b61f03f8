"""What a joint run is told: a run of the text side and one of the image side, from one snapshot."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from comfyloop.records import Record
from comfyloop.train.specs.base import RunSpec
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.text import TrainSpec


class JointSpec(Record):
    """Either side may be left out. Paths in the sides are absolute or relative to the run directory."""

    recipe: Literal["joint"] = "joint"
    text: TrainSpec | None = None
    image: ImageTrainSpec | None = None
    writer_model: str = Field(default="", description="The language model that writes prompts.")
    writer: str | None = Field(
        default=None,
        description="PEFT directory that writes prompts when the text side is left out; None: the base model.",
    )
    written_prompts: bool = Field(
        default=True, description="Train the image side on the text side's own prompts too, one in two."
    )
    prompt_tokens: int = Field(default=96, ge=1, description="Longest written prompt.")

    @model_validator(mode="after")
    def _has_a_side(self) -> JointSpec:
        if not self.sides:
            raise ValueError("a joint run needs a text side, an image side or both")
        if self.text is not None and self.text.tuner_type != "lora":
            raise ValueError("the text side of a joint run trains a LoRA: set its tuner_type to lora")
        return self

    @property
    def sides(self) -> list[RunSpec]:
        return [side for side in (self.text, self.image) if side is not None]

    @property
    def model(self) -> str:
        return self.sides[0].model

    @property
    def dtype(self) -> str:
        return self.sides[0].dtype

    @property
    def nice(self) -> int:
        return self.sides[0].nice

    @property
    def threads(self) -> int:
        return self.sides[0].threads

    @property
    def step_aside_after(self) -> float | None:
        return self.sides[0].step_aside_after

    @property
    def memory_gb(self) -> float:
        return self.sides[0].memory_gb

    @property
    def world_size(self) -> int:
        return self.sides[0].world_size

    def data_files(self) -> list[str]:
        return [file for side in self.sides for file in side.data_files()]

    def weights(self) -> list[str]:
        own = [self.writer_model, *([self.writer] if self.writer is not None else [])]
        return [*(path for side in self.sides for path in side.weights()), *filter(None, own)]
