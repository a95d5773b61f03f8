"""Converts a training spec to arguments of `swift sft` and `swift rlhf` (ms-swift 4.6). Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyloop.recipes import RECIPES
from comfyloop.train.specs.text import TrainSpec


@dataclass(frozen=True)
class Places:
    """Where things are in a run that ms-swift does.

    Attributes:
        train, holdout: The rows, with absolute image paths.
        output: ms-swift's output directory.
        init_from: The PEFT directory to go on from.
        checkpoint: ms-swift's own checkpoint to resume from.
    """

    model: str
    train: Path
    holdout: Path | None
    output: Path
    init_from: Path | None = None
    checkpoint: Path | None = None


def arguments(
    spec: TrainSpec, places: Places, *, dtype: str, use_cpu: bool, targets: str | list[str], own: str
) -> list[str]:
    """The command line after `swift sft` or `swift rlhf`.

    Args:
        dtype: "bfloat16", "float16" or "float32".
        use_cpu: There is no GPU.
        targets: LoRA's target modules as PEFT takes them: names, or a regular expression.
        own: The name of our model type, template and callback.
    """
    lora = spec.adapter
    flags: dict[str, Any] = {
        "model": places.model,
        "model_type": own,
        "template": own,
        "check_model": False,  # else it asks a hub for 22 seconds about a model that is here
        "torch_dtype": dtype,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "use_cpu": use_cpu,  # without it transformers refuses bf16 where there is no GPU
        "attn_impl": spec.attn_implementation if spec.attn_implementation != "auto" else None,
        # data: every row as it is or an error, never another one in its place
        "dataset": places.train,
        "val_dataset": places.holdout,
        "strict": True,
        "truncation_strategy": "delete",
        "lazy_tokenize": True,
        "dataloader_num_workers": 0,
        "dataset_num_proc": 1,
        "data_seed": spec.seed % 2**32,  # numpy's are no longer
        # what is trained
        "tuner_type": "lora",
        "lora_rank": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        **({"target_regex": targets} if isinstance(targets, str) else {"target_modules": targets}),
        "freeze_llm": spec.freeze_llm,
        "freeze_vit": spec.freeze_vit,
        "freeze_aligner": spec.freeze_aligner,
        "quant_method": spec.quant_method,
        "quant_bits": spec.quant_bits if spec.quant_method else None,
        "adapters": places.init_from,
        # how
        "seed": spec.seed % 2**32,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": spec.lr_scheduler_type,
        "warmup_ratio": min(spec.warmup_ratio, 0.99),
        "num_train_epochs": spec.epochs,
        "max_steps": spec.max_steps or -1,
        "per_device_train_batch_size": spec.per_device_train_batch_size,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "max_grad_norm": spec.max_grad_norm,
        "weight_decay": spec.weight_decay,
        "adam_beta2": spec.adam_beta2,
        "gradient_checkpointing": spec.gradient_checkpointing,
        "vit_gradient_checkpointing": spec.vit_gradient_checkpointing,
        "neftune_noise_alpha": spec.neftune_noise_alpha or None,
        # what comes out
        "output_dir": places.output,
        "add_version": False,
        "logging_steps": 1,
        "save_steps": spec.save_steps,
        "save_total_limit": 2,
        "eval_strategy": "steps" if places.holdout is not None else "no",
        "eval_steps": spec.eval_steps,
        "report_to": "none",
        "callbacks": own,
        "resume_from_checkpoint": places.checkpoint,
        **_preference(spec, places),
    }
    return [word for name, value in flags.items() if value is not None for word in _words(name, value)]


def _preference(spec: TrainSpec, places: Places) -> dict[str, Any]:
    swift = RECIPES[spec.recipe].swift
    assert swift is not None  # a spec of another recipe does not name this engine
    if swift.command == "sft":
        return {}
    preference = spec.preference
    # the reference is the parent version, as in our own recipes; without one, the adapter switched off
    common = {"rlhf_type": spec.recipe, "beta": preference.beta, "ref_adapters": places.init_from}
    own = {name: getattr(preference, name) for name in swift.flags}
    if own.get("rpo_alpha") == 0:
        del own["rpo_alpha"]  # by which it would still compute that loss
    return common | own


def _words(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
