"""The spec of a training run: one frozen record, `spec.json` in the run directory."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from comfyloop.records import Record


class RunSpec(Record):
    """What every run is told. Paths are absolute or relative to the run directory; names follow transformers'
    Trainer."""

    model: str = Field(description="Directory or hub id of the base model.")
    train: str = Field(description="JSON lines in ms-swift's form.")
    holdout: str | None = Field(default=None, description="The same, for `holdout_loss`; never trained on.")

    learning_rate: float = Field(default=1e-3, gt=0, description="The highest that the schedule reaches.")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up."
    )
    warmup_ratio: float = Field(default=0.05, ge=0, le=1, description="Share of the steps of rising rate.")
    epochs: float = Field(default=6.0, gt=0, description="Passes over the training data.")
    max_steps: int = Field(default=0, ge=0, description="Upper bound of optimiser steps; 0: by epochs.")
    replay_share: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="Share of rows marked `replay` in what an epoch passes, those marked `part: rehearsal` are then "
        "passed once in a run; 0: every row in every epoch.",
    )
    per_device_train_batch_size: int = Field(default=4, ge=1, description="Samples a micro-batch.")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="Micro-batches a step.")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="Larger gradients are scaled down to it; 0: none."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Of AdamW.")
    adam_beta2: float = Field(default=0.999, gt=0, lt=1, description="AdamW's decay of squared gradients.")

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Precision of the weights; auto: bfloat16 where the processor has it."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Keep each layer's input alone and compute the rest again: less memory."
    )
    max_image_pixels: int = Field(default=64_000_000, gt=0, description="Larger images are bad data.")
    skip_bad: bool = Field(default=False, description="Train on the rest when lines are bad.")
    max_bad_share: float = Field(default=0.1, ge=0, le=1, description="With skip_bad: more than this fails.")

    seed: int = Field(
        default=42,
        ge=-(2**63),
        lt=2**64,
        description="Of the LoRA's first values, the order, dropout and noise.",
    )
    save_steps: int = Field(default=10, ge=1, description="Optimiser steps between checkpoints.")
    eval_steps: int = Field(default=10, ge=1, description="Optimiser steps between looks at the hold-out.")
    early_stopping_patience: int = Field(
        default=0,
        ge=0,
        description="Looks at the hold-out without a lower loss after which the run ends, with the weights of the "
        "best look; 0: it goes on to the end.",
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0: all cores.")
    memory_gb: float = Field(default=0, ge=0, description="Most resident memory; 0: no limit.")
    step_aside_after: float | None = Field(
        default=None,
        ge=0,
        description="Seconds on hold after which the run gives its memory back, until it goes on exactly where it was; "
        "0: never; unset: 3 on a card with a memory of its own, else never.",
    )
    nice: int = Field(default=10, ge=0, le=19, description="How far the trainer stands back for others.")
    world_size: int = Field(default=1, ge=1, description="Processes (ranks) that train this run together.")
    parallel: Literal["fsdp2", "zero2", "zero3"] = Field(
        default="fsdp2", description="How they share the weights: torch FSDP2, DeepSpeed ZeRO-2 or ZeRO-3."
    )
    rank_timeout: float = Field(
        default=600, gt=0, description="Seconds after which a process that does not answer counts as lost."
    )

    def smaller(self) -> Self | None:
        """The same steps with less memory: fewer samples at a time, then one with checkpointing; None if that is
        already so."""
        size = self.per_device_train_batch_size
        if size > 1:
            parts = next(n for n in range(2, size + 1) if size % n == 0)
            return self.model_copy(
                update={
                    "per_device_train_batch_size": size // parts,
                    "gradient_accumulation_steps": self.gradient_accumulation_steps * parts,
                }
            )
        if not self.gradient_checkpointing:
            return self.model_copy(update={"gradient_checkpointing": True})
        return None

    def at_once(self) -> Self:
        """The same steps, each computed at once: the values that losses depend on, which the micro-batch size is
        not among."""
        size = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return self.model_copy(
            update={
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": 1,
                "gradient_checkpointing": False,
            }
        )

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        try:
            self.model_dump_json()
        except ValueError:
            raise ValueError("a text or path has half a character, which no file keeps") from None
        return self

    @model_validator(mode="after")
    def _eval_needs_data(self) -> Self:
        if self.holdout is not None and self.holdout == self.train:
            raise ValueError("holdout is the training file itself: held-out loss would mean nothing")
        return self

    def data_files(self) -> list[str]:
        """The files of rows that the run reads; images lie beside them."""
        return [file for file in (self.train, self.holdout) if file is not None]

    def weights(self) -> list[str]:
        """The models and adapters that the run reads: paths, or ids of a hub."""
        return [self.model]
