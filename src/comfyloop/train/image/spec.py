"""What a run of the image side is told. Names follow diffusers' training examples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from comfyloop.records import Record


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


class About(Record):
    """What the LoRA file says of itself."""

    project: str = ""
    version: str = ""
    parent: str = ""
    snapshot: str = ""
    run: str = ""
    trigger_words: str = ""


class ImageTrainSpec(Record):
    """One run. Paths are absolute or relative to the run directory."""

    recipe: Literal["image_sft", "image_dpo"] = "image_sft"
    model: str = Field(description="A .safetensors checkpoint, or a diffusers folder.")
    vae: str | None = Field(default=None, description="Another VAE than the checkpoint's.")
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto"
    train: str = Field(description="JSON lines: a message with the prompt, `picked`, and `over` for pairs.")
    holdout: str | None = Field(default=None, description="The same; never trained on.")
    adapter: ImageAdapterSpec = ImageAdapterSpec()
    about: About = About()

    resolution: int = Field(
        default=0, ge=0, description="Side of a square of as many pixels as a picture has; 0: the model's own."
    )
    bucket_step: int = Field(default=64, ge=8, description="Widths and heights are multiples of this.")
    caption_dropout: float = Field(default=0.1, ge=0, le=1, description="`image_sft`: share without caption.")
    trigger_in_caption: bool = Field(default=True, description="Put the trigger words before every caption.")
    snr_gamma: float = Field(default=5.0, ge=0, description="Min-SNR weighting of timesteps; 0: none.")
    noise_offset: float = Field(default=0.0, ge=0)
    prior: str | None = Field(
        default=None,
        description="`image_sft`: pictures that the untrained model made, in the form of `train`, so that it "
        "does not forget how to make them.",
    )
    prior_loss_weight: float = Field(default=1.0, ge=0)
    beta_dpo: float = Field(default=2000.0, gt=0, description="`image_dpo`: how closely the reference is kept to.")
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="Save a moving average of the weights instead of the last; 0: off."
    )

    learning_rate: float = Field(default=1e-4, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "constant"
    warmup_ratio: float = Field(default=0.05, ge=0, le=1)
    epochs: float = Field(default=10.0, gt=0)
    max_steps: int = Field(default=0, ge=0, description="Upper bound of optimiser steps; 0: by epochs.")
    per_device_train_batch_size: int = Field(default=4, ge=1, description="Samples a micro-batch.")
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_grad_norm: float = Field(default=1.0, ge=0, description="0: no clipping.")
    weight_decay: float = Field(default=0.01, ge=0)

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Of the frozen weights; the LoRA is trained in float32."
    )
    gradient_checkpointing: bool = False
    max_image_pixels: int = Field(default=64_000_000, gt=0, description="Larger images are bad data.")
    skip_bad: bool = Field(default=False, description="Train on the rest when lines are bad.")
    max_bad_share: float = Field(default=0.1, ge=0, le=1, description="With skip_bad: more than this fails.")
    cache: str | None = Field(
        default=None, description="Folder of latents and text states, shared by runs; None: in the run."
    )

    seed: int = 42
    save_steps: int = Field(default=50, ge=1, description="Optimiser steps between checkpoints.")
    eval_steps: int = Field(default=50, ge=1, description="Optimiser steps between looks at the hold-out.")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0: all cores.")
    memory_gb: float = Field(default=0, ge=0, description="Most resident memory; 0: no limit.")
    nice: int = Field(default=10, ge=0, le=19)

    @model_validator(mode="after")
    def _fits_together(self) -> ImageTrainSpec:
        if self.holdout is not None and self.holdout == self.train:
            raise ValueError("holdout is the training file itself: held-out loss would mean nothing")
        if self.recipe == "image_dpo" and self.prior is not None:
            raise ValueError("prior pictures are for image_sft; image_dpo has its reference against forgetting")
        if self.bucket_step % 8:
            raise ValueError("bucket_step must be a multiple of 8, the VAE's step")
        return self
