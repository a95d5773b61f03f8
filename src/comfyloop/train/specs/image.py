"""What a run of the image side is told; names follow diffusers' training examples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from comfyloop.recipes import RECIPES, ImageRecipe, of_side
from comfyloop.records import Record
from comfyloop.train.specs.base import RunSpec


class ImageAdapterSpec(Record):
    """The LoRA to train."""

    r: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=16, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["attention", "all"] = Field(
        default="attention", description="`all` adds feed-forward layers and convolutions of the UNet."
    )
    text_encoder: bool = Field(
        default=False, description="Train a LoRA on the text encoders too; their outputs are not cached then."
    )
    init_from: str | None = Field(
        default=None, description="LoRA file to go on from (the parent version's); None: fresh."
    )


class AdapterMetadata(Record):
    """What the LoRA file says of itself."""

    project: str = ""
    version: str = ""
    parent: str = ""
    snapshot: str = ""
    run: str = ""
    trigger_words: str = ""


class ImageTrainSpec(RunSpec):
    """A run of the image side.

    `model` is a .safetensors checkpoint or a diffusers folder. `train` is JSON lines: a message with the
    prompt, the picture that was `chosen`, and the one that was `rejected` for pairs.
    """

    recipe: ImageRecipe = Field(
        default="image_sft",
        description="; ".join(f"`{name}`: {recipe.does}" for name, recipe in of_side("image").items()) + ".",
    )
    adapter: ImageAdapterSpec = ImageAdapterSpec()
    about: AdapterMetadata = AdapterMetadata()
    vae: str | None = Field(default=None, description="Another VAE than the checkpoint's.")
    prediction_type: Literal["auto", "epsilon", "v_prediction", "sample"] = Field(
        default="auto",
        description="What a UNet predicts of a noisy picture: the noise, the velocity or the picture; auto: what the "
        "model says of itself.",
    )

    resolution: int = Field(
        default=0,
        ge=0,
        description="Side of a square of as many pixels as a picture has; 0: the model's own.",
    )
    bucket_step: int = Field(
        default=64, ge=8, multiple_of=8, description="Widths and heights are multiples of this."
    )
    crop: Literal["subject", "middle"] = Field(
        default="subject",
        description="What of a picture is kept where it is cut to its size: the subject, or the middle.",
    )
    caption_dropout: float = Field(default=0.1, ge=0, le=1, description="Share of pictures without caption.")
    trigger_in_caption: bool = Field(default=True, description="Put the trigger words before every caption.")
    snr_gamma: float = Field(
        default=5.0,
        ge=0,
        description="`image_sft`: Min-SNR weighting of timesteps (Hang et al. 2023); 0: none.",
    )
    noise_offset: float = Field(default=0.0, ge=0)
    prior: str | None = Field(
        default=None,
        description="`image_sft`: pictures that the untrained model made, in the form of `train`, so that it "
        "does not forget how to make them.",
    )
    prior_images: int = Field(
        default=0, ge=0, description="`image_sft`: have so many of them made before the first step."
    )
    prior_loss_weight: float = Field(default=1.0, ge=0)
    beta_dpo: float = Field(
        default=2000.0, gt=0, description="`image_dpo`: how closely the reference is kept to."
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Save a moving average of the weights instead of the last; 0: off.",
    )
    cache: str | None = Field(
        default=None, description="Folder of latents and text states, shared by runs; None: in the run."
    )

    learning_rate: float = Field(default=1e-4, gt=0)
    epochs: float = Field(default=10.0, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    save_steps: int = Field(default=50, ge=1, description="Optimiser steps between checkpoints.")
    eval_steps: int = Field(default=50, ge=1, description="Optimiser steps between looks at the hold-out.")

    @model_validator(mode="after")
    def _fits_together(self) -> ImageTrainSpec:
        if self.prior is not None and self.prior_images:
            raise ValueError("prior pictures are given (prior) or made (prior_images), not both")
        if self.compares and (self.prior is not None or self.prior_images):
            raise ValueError(
                f"prior pictures are for image_sft; {self.recipe} has its reference against forgetting"
            )
        if self.world_size > 1:
            raise ValueError("runs of the image side train in one process: set world_size to 1")
        return self

    @property
    def compares(self) -> bool:
        """Whether its rows are pairs of pictures."""
        return RECIPES[self.recipe].kind == "image_pair"

    def data_files(self) -> list[str]:
        return [*super().data_files(), *([] if self.prior is None else [self.prior])]

    def weights(self) -> list[str]:
        others = (self.vae, self.adapter.init_from)
        return [*super().weights(), *(path for path in others if path is not None)]
