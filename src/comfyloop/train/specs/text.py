"""What a run of the text side is told."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, model_validator

from comfyloop.declared import listed
from comfyloop.models.rope import RopeScaling
from comfyloop.recipes import RECIPES, TextRecipe, of_side
from comfyloop.records import Record
from comfyloop.settings import Settings
from comfyloop.train.specs.base import RunSpec
from comfyloop.train.specs.rates import own_rate

MOST_EPOCHS = 10.0
"""Passes over a few samples; of many, fewer are enough."""


class AdapterSpec(Record):
    """The LoRA to train; the names are PEFT's."""

    r: int = Field(default=8, ge=1, description="Rank.")
    lora_alpha: int = Field(default=16, ge=1, description="Its update is scaled by lora_alpha / r.")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the LoRA.")
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear",
        description="`all-linear` (all linear layers of the language model), `attention` (its Q/K/V/O), "
        "a regular expression over full module names, or a list of module names of the language model. "
        "All but the regular expression take in the vision tower and the projector where those are not frozen.",
    )
    modules_to_save: tuple[str, ...] = Field(
        default=(),
        description="Modules trained whole and kept in the adapter, such as the projector. PEFT loads such an adapter; "
        "no engine of ours serves it.",
    )
    use_rslora: bool = Field(
        default=False, description="Scale by lora_alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023)."
    )
    use_dora: bool = Field(
        default=False, description="Train magnitudes apart from directions (DoRA, Liu et al. 2024)."
    )
    init_from: str | None = Field(
        default=None, description="PEFT directory to go on from (the parent version); None: fresh."
    )


class PreferenceSpec(Record):
    """What the recipes `dpo` and `kto` weigh; the names are TRL's."""

    beta: float = Field(default=0.1, gt=0, description="How closely the reference is kept to.")
    loss_type: Literal["sigmoid", "ipo"] = Field(default="sigmoid", description="Of `dpo`.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="`dpo`, sigmoid: share of pairs that are the wrong way round."
    )
    rpo_alpha: float = Field(
        default=0.0, ge=0, description="`dpo`: weight of the chosen answer's own loss (Pang et al. 2024)."
    )
    desirable_weight: float = Field(default=1.0, gt=0, description="`kto`: of answers with label true.")
    undesirable_weight: float = Field(default=1.0, gt=0, description="`kto`: of answers with label false.")


class DistillationSpec(Record):
    """What the recipe `sdft` does; the names are TRL's and ms-swift's."""

    lmbda: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the samples that are learnt on an answer of the student's own (on-policy); the others on "
        "the wanted answer itself, which samples nothing. 0: as a small model may need it.",
    )

    teacher_update_rate: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="How far the teacher's weights follow the student's each step (a moving average, as Shenfeld et "
        "al. 2026 have it); 0: they stay what they were when the run began; 1: they are the student's.",
    )
    max_completion_length: int = Field(
        default=64,
        ge=1,
        description="Longest answer that the student samples, in tokens; at most half as long again as the wanted one.",
    )
    temperature: float = Field(default=1.0, gt=0, description="Of these answers.")
    steps_per_generation: int = Field(
        default=4,
        ge=1,
        description="Steps whose answers are sampled together, by the weights before the first.",
    )
    distillation_topk: int = Field(
        default=32, ge=1, description="The teacher's likeliest next tokens that are learnt, at each place."
    )


class TrainSpec(RunSpec):
    """A run of the text side."""

    recipe: TextRecipe = Field(
        default="sft",
        description="; ".join(f"`{name}`: {recipe.does}" for name, recipe in of_side("text").items()) + ".",
    )
    train_engine: Literal["comfyloop", "swift"] = Field(
        default="comfyloop", description="Our own trainer, or ms-swift in its own environment."
    )
    swift_python: str = Field(
        default="",
        description="Python that has ms-swift; empty: what `comfyloop engines install swift` made.",
    )
    adapter: AdapterSpec = Field(default=AdapterSpec(), description="The LoRA; its fields are below.")
    preference: PreferenceSpec = Field(
        default=PreferenceSpec(), description="What `dpo` and `kto` weigh; its fields are below."
    )
    distillation: DistillationSpec = Field(
        default=DistillationSpec(), description="What `sdft` does; its fields are below."
    )
    tuner_type: Literal["lora", "full"] = Field(
        default="lora", description="A LoRA as `adapter` says, or the weights themselves."
    )
    freeze_llm: bool = Field(default=False, description="Whether the language model stays as it is.")
    freeze_vit: bool = Field(default=True, description="Whether the vision tower stays as it is.")
    freeze_aligner: bool = Field(default=True, description="Whether the projector stays as it is.")
    replay_kl: float = Field(
        default=4.0,
        ge=0,
        description="`sft`, `sdft`: rows marked `replay` hold the model to what the base model finds likely there, "
        "with this weight; 0: their answers are learnt like any other.",
    )
    quant_method: Literal["bnb"] | None = Field(
        default=None, description="`bnb`: the base weights in 4 bits, NF4 with double quantisation (QLoRA)."
    )
    quant_bits: Literal[4] = Field(default=4, description="With `bnb`: bits a weight.")
    train_on: Literal["last", "all"] = Field(
        default="last",
        description="Which assistant turns are learnt: the last one (the corrected answer; earlier ones are "
        "context that nobody corrected) or all of them.",
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto", description="auto: FlashAttention where it is installed and can be used, else sdpa."
    )
    vit_gradient_checkpointing: bool = Field(
        default=False, description="Gradient checkpointing in the vision tower, where it is trained."
    )
    neftune_noise_alpha: float = Field(
        default=0.0, ge=0, description="Noise on the embeddings (NEFTune, Jain et al. 2023); 0: none."
    )
    max_pixels: int = Field(default=1_003_520, gt=0, description="Larger images are scaled down to this.")
    feature_cache_dir: str | None = Field(
        default=None, description="Where the frozen vision tower's features outlive the run; None: nowhere."
    )
    feature_cache_gb: float = Field(default=10.0, gt=0, description="Most room that they take there.")
    rope_scaling: RopeScaling | None = Field(
        default=None, description="More positions than the model was trained on; None: its own."
    )
    max_length: int = Field(
        default=0, ge=0, description="Longest sample in tokens; 0: what the model allows."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSpec:
        recipe = RECIPES[self.recipe]
        if self.train_on != "last" and not recipe.all_turns:
            able = listed([name for name, other in of_side("text").items() if other.all_turns])
            does = "samples" if recipe.samples_answers else "compares"
            raise ValueError(f"train_on = all is for {able}: {self.recipe} {does} last answers")
        if self.train_engine == "swift" and recipe.swift is None:
            raise ValueError(
                f"recipe = {self.recipe} is trained by our own trainer: set train_engine = comfyloop"
            )
        if self.world_size > 1 and recipe.samples_answers:
            raise ValueError(
                f"recipe = {self.recipe} samples answers, which one process does: set world_size = 1"
            )
        if self.freeze_llm and self.freeze_vit and self.freeze_aligner:
            raise ValueError("freeze_llm, freeze_vit and freeze_aligner leave nothing to train")
        if self.train_engine == "swift" and (self.tuner_type == "full" or self.adapter.modules_to_save):
            raise ValueError(
                "train_engine = swift trains a LoRA alone: no tuner_type = full, no modules_to_save"
            )
        if self.tuner_type == "full":
            if self.quant_method is not None:
                raise ValueError("tuner_type = full cannot train 4-bit weights: leave quant_method out")
            if self.adapter.init_from is not None:
                raise ValueError("tuner_type = full starts from `model`, not from an adapter (init_from)")
            if self.dtype == "float16":
                raise ValueError("tuner_type = full needs dtype = bfloat16 or float32: float16 overflows")
        return self

    def weights(self) -> list[str]:
        parent = self.adapter.init_from
        return [*super().weights(), *([] if parent is None else [parent])]

    @staticmethod
    def threads_of(settings: Settings) -> int:
        """The number of cores for the trainer; the rest is for serving."""
        return settings.train_threads or max(1, (os.cpu_count() or 2) // 2)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        model: str,
        train: str,
        holdout: str | None,
        init_from: str | None = None,
        epochs: float | None = None,
        **more: object,
    ) -> TrainSpec:
        """The spec that the loop uses: every value for which there is a setting is taken from it.

        Args:
            epochs: Passes over what is new; None: as the setting says.
            more: Fields that no setting names.
        """
        return cls.model_validate(
            {
                "recipe": settings.recipe,
                "train_engine": settings.train_engine,
                "swift_python": settings.swift_python,
                "model": model,
                "train": train,
                "holdout": holdout,
                # one sample must not stop the loop: what this model cannot take is left out by name
                "skip_bad": True,
                "max_bad_share": 1.0,
                "adapter": {
                    "r": settings.lora_r,
                    "lora_alpha": settings.lora_alpha,
                    "target_modules": settings.lora_target_modules,
                    "init_from": init_from,
                },
                "preference": {
                    "beta": settings.preference_beta,
                    "rpo_alpha": settings.preference_rpo_alpha,
                },
                "distillation": {"lmbda": settings.distillation_lmbda},
                "quant_method": settings.quant_method or None,
                "gradient_checkpointing": settings.gradient_checkpointing,
                "learning_rate": settings.learning_rate
                or own_rate(RECIPES[settings.recipe], model, going_on=bool(init_from)),
                "epochs": epochs or settings.epochs or MOST_EPOCHS,
                "replay_share": settings.replay_share if RECIPES[settings.recipe].replays else 0.0,
                "max_steps": settings.max_steps,
                "per_device_train_batch_size": settings.batch_size,
                "dtype": settings.dtype,
                "max_pixels": settings.max_pixels,
                "feature_cache_dir": str(settings.cache_dir / "features"),
                "feature_cache_gb": settings.feature_cache_gb,
                "max_image_pixels": settings.max_image_pixels,
                "rope_scaling": RopeScaling.parse(settings.rope_scaling),
                "threads": cls.threads_of(settings),
                "memory_gb": settings.train_memory_gb,
                "step_aside_after": settings.step_aside_after,
                "world_size": settings.train_processes,
                "parallel": settings.train_parallel,
                **more,
            }
        )
