"""Maps each flag of ms-swift: to an entry of a training spec, to no effect, or to unsupported. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfyloop.recipes import RECIPES

RENAMED = {
    "train_dataset": "dataset",
    "custom_train_dataset_path": "dataset",
    "custom_val_dataset_path": "val_dataset",
    "sft_type": "tuner_type",
    "train_type": "tuner_type",
    "lora_target_modules": "target_modules",
    "lora_dropout_p": "lora_dropout",
    "template_type": "template",
    "model_id_or_path": "model",
    "ckpt_dir": "resume_from_checkpoint",
    "use_gradient_checkpointing": "gradient_checkpointing",
    "max_image_pixels": "max_pixels",
    "quantization_bit": "quant_bits",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "dtype": "torch_dtype",
    "check_model_is_latest": "check_model",
    "neftune_alpha": "neftune_noise_alpha",
    "dataset_test_ratio": "split_dataset_ratio",
}
"""Names of 2024 (ms-swift 2 and 3) -> names of 4.x."""

OLD = {*RENAMED, "use_4bit", "model_cache_dir", "quant_type", "use_flash_attn", "model_type"}
"""Flags by which a command of 2024 is known; its defaults were others."""

MODEL_TYPES = {
    "llava1_5-7b-instruct": "llava-hf/llava-1.5-7b-hf",
    "llava1_5-13b-instruct": "llava-hf/llava-1.5-13b-hf",
    "llava1_6-mistral-7b-instruct": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava1_6-vicuna-7b-instruct": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "qwen2-vl-2b-instruct": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2-vl-7b-instruct": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2-0_5b-instruct": "Qwen/Qwen2-0.5B-Instruct",
    "qwen2-1_5b-instruct": "Qwen/Qwen2-1.5B-Instruct",
    "qwen2-7b-instruct": "Qwen/Qwen2-7B-Instruct",
    "qwen2_5-3b-instruct": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2_5-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
}
"""What a --model_type of 2024 stood for, where transformers loads it."""

MODEL_TYPES_OF_OWN_CODE = {
    "qwen-vl": "Qwen/Qwen-VL",
    "qwen-vl-chat": "Qwen/Qwen-VL-Chat",
    "qwen-vl-chat-int4": "Qwen/Qwen-VL-Chat-Int4",
    "internvl-chat-v1_5": "OpenGVLab/InternVL-Chat-V1-5",
    "minicpm-v-v2_5-chat": "openbmb/MiniCPM-Llama3-V-2_5",
}
"""The same, where the model brings code of its own, which is not run here."""

NEEDLESS = {
    "check_model": "a local model is never checked against a hub",
    "logging_steps": "every step is logged",
    "logging_first_step": "every step is logged",
    "report_to": "log.jsonl and TensorBoard files are always written",
    "logging_dir": "TensorBoard files are in the run directory",
    "save_total_limit": "the newest two checkpoints are kept",
    "save_strategy": "checkpoints are taken every save_steps",
    "eval_strategy": "the hold-out is looked at every eval_steps",
    "evaluation_strategy": "the hold-out is looked at every eval_steps",
    "add_version": "every run has a directory of its own",
    "packing": "samples are always packed, none sees another",
    "padding_free": "there is never any padding",
    "group_by_length": "there is no padding that sorting by length would save",
    "strict": "a bad row is always an error, never replaced",
    "lazy_tokenize": "rows are encoded once, before the first step",
    "dataset_num_proc": "rows are encoded by the trainer itself",
    "preprocess_num_proc": "rows are encoded by the trainer itself",
    "dataloader_num_workers": "rows are in memory before the first step",
    "dataloader_pin_memory": "rows are in memory before the first step",
    "dataloader_persistent_workers": "rows are in memory before the first step",
    "load_from_cache_file": "rows are encoded anew for each run",
    "save_only_model": "checkpoints hold what a run needs to go on, and the adapter is apart",
    "use_hf": "hub ids are looked up where transformers looks",
    "remove_unused_columns": "keys that training does not need are passed over",
    "per_device_eval_batch_size": "the hold-out is packed by tokens",
    "eval_batch_size": "the hold-out is packed by tokens",
    "overwrite_output_dir": "every run has a directory of its own",
    "ddp_backend": "one process trains",
    "ddp_find_unused_parameters": "one process trains",
    "bf16": "torch_dtype says it",
    "fp16": "torch_dtype says it",
    "lora_dtype": "the LoRA is trained in float32",
    "use_logits_to_keep": "only answer tokens ever go through the head",
    "quant_type": "quant_method says it",
    "bnb_4bit_quant_type": "NF4 is what is used",
    "bnb_4bit_use_double_quant": "double quantisation is what is used",
    "bnb_4bit_compute_dtype": "torch_dtype says it",
    "self_cognition_sample": "no sample is added to yours",
    "acc_strategy": "accuracy is counted by tokens",
    "task_type": "answers are what is learnt",
}
"""Flags without which the run is the same, and why."""


class Unmeant(ValueError):
    """Why a flag's value has no meaning here, as the end of a sentence."""


class Other(ValueError):
    """Why a command with this value is for another learning task, as the end of a sentence."""


def one(words: Sequence[str]) -> str:
    if len(words) != 1:
        raise ValueError
    return words[0]


def yes(words: Sequence[str]) -> bool:
    """A flag without a value means yes, as it does in ms-swift."""
    word = words[-1].lower() if words else "true"
    if word not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError
    return word in {"true", "1", "yes"}


def integer(words: Sequence[str]) -> int:
    return int(one(words))


def number(words: Sequence[str]) -> float:
    return float(one(words))


def alpha(words: Sequence[str]) -> int:
    value = number(words)
    if value != int(value):
        raise Unmeant(f"a LoRA alpha is a whole number here, not {value:g}")
    return int(value)


def steps(words: Sequence[str]) -> int:
    value = number(words)
    if value < 1:
        raise Unmeant(f"{value:g} is a share of the run, and a number of steps is wanted")
    return int(value)


def max_steps(words: Sequence[str]) -> int:
    return max(0, integer(words))


def modules(words: Sequence[str]) -> str | list[str]:
    if len(words) == 1 and words[0].upper() in {"ALL", "ALL-LINEAR", "AUTO"}:
        return "all-linear"
    if len(words) == 1 and words[0] == "DEFAULT":
        return "attention"
    if len(words) == 1 and re.search(r"[.*^$|()\[\]]", words[0]):
        return words[0]
    if "all-linear" in words or "EMBEDDING" in words or "all-embedding" in words:
        raise Unmeant("embeddings are not trained here; name the linear layers alone")
    return list(words)


def dtype(words: Sequence[str]) -> str:
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "auto": "auto"}
    word = one(words)
    return names.get(word.lower(), word)


def attention(words: Sequence[str]) -> str:
    word = one(words)
    return "flash_attention_2" if word == "flash_attn" else word


def schedule(words: Sequence[str]) -> str:
    word = one(words)
    if word not in {"cosine", "linear", "constant"}:
        raise Unmeant("the schedules are cosine, linear and constant; the default is used")
    return word


def turns(words: Sequence[str]) -> str:
    """ms-swift learns every answer of a conversation by default, and the last one with `last_round`."""
    word = one(words)
    if word not in {"default", "last_round"}:
        raise Unmeant("answers are weighed alike: all of them (default) or the last (last_round)")
    return "all" if word == "default" else "last"


def tuner(words: Sequence[str]) -> str:
    word = one(words)
    if word not in {"lora", "full"}:
        raise Unmeant("ComfyLoop trains a LoRA, or the weights themselves (full)")
    return word


def quantiser(words: Sequence[str]) -> str:
    if one(words) != "bnb":
        raise Unmeant("only bitsandbytes (bnb) is used here")
    return "bnb"


def bits(words: Sequence[str]) -> int:
    if integer(words) != 4:
        raise Unmeant("weights are quantised to 4 bits (NF4)")
    return 4


def loss_type(words: Sequence[str]) -> str:
    if not words:
        raise ValueError
    if list(words) not in (["sigmoid"], ["ipo"]):
        raise Other("the losses of dpo are sigmoid and ipo; --rpo_alpha adds the preferred answer's own loss")
    return words[0]


def refuse_other_learning(recipe: str, words_of: Mapping[str, Sequence[str]]) -> None:
    """Raises Other, after the flag's name, where a command would learn something else than answers."""
    task = list(words_of.get("task_type", ["causal_lm"]))
    if task != ["causal_lm"]:
        raise Other(f"--task_type {' '.join(task)}: ComfyLoop learns answers (causal_lm)")
    if "use_chat_template" in words_of and not yes(words_of["use_chat_template"]):
        raise Other("--use_chat_template false: ComfyLoop learns the answers of conversations")
    swift = RECIPES[recipe].swift
    usual = swift.loss if swift is not None else ""
    loss = list(words_of.get("loss_type", ()))
    if usual and loss and loss != [usual]:
        raise Other(f"--loss_type {' '.join(loss)}: the loss of {recipe} is {usual}")


def rope(words: Sequence[str]) -> dict[str, Any]:
    word = one(words)
    if not word.startswith("{"):
        raise Unmeant('give it with its factor, as in \'{"rope_type": "yarn", "factor": 2.0}\'')
    config: Any = json.loads(word)
    if not isinstance(config, dict):
        raise ValueError
    scaling = {"rope_type": config.get("rope_type", config.get("type")), "factor": config.get("factor")}
    return {name: value for name, value in scaling.items() if value is not None}


HONOURED: dict[str, tuple[str, Callable[[Sequence[str]], Any]]] = {
    "model": ("model", one),
    "learning_rate": ("learning_rate", number),
    "num_train_epochs": ("epochs", number),
    "max_epochs": ("epochs", number),
    "max_steps": ("max_steps", max_steps),
    "lr_scheduler_type": ("lr_scheduler_type", schedule),
    "warmup_ratio": ("warmup_ratio", number),
    "weight_decay": ("weight_decay", number),
    "adam_beta2": ("adam_beta2", number),
    "max_grad_norm": ("max_grad_norm", number),
    "per_device_train_batch_size": ("per_device_train_batch_size", integer),
    "gradient_accumulation_steps": ("gradient_accumulation_steps", integer),
    "gradient_checkpointing": ("gradient_checkpointing", yes),
    "vit_gradient_checkpointing": ("vit_gradient_checkpointing", yes),
    "torch_dtype": ("dtype", dtype),
    "attn_impl": ("attn_implementation", attention),
    "max_length": ("max_length", integer),
    "max_pixels": ("max_pixels", integer),
    "rope_scaling": ("rope_scaling", rope),
    "seed": ("seed", integer),
    "save_steps": ("save_steps", steps),
    "eval_steps": ("eval_steps", steps),
    "loss_scale": ("train_on", turns),
    "tuner_type": ("tuner_type", tuner),
    "freeze_llm": ("freeze_llm", yes),
    "freeze_vit": ("freeze_vit", yes),
    "freeze_aligner": ("freeze_aligner", yes),
    "modules_to_save": ("adapter.modules_to_save", list),
    "quant_method": ("quant_method", quantiser),
    "quant_bits": ("quant_bits", bits),
    "neftune_noise_alpha": ("neftune_noise_alpha", number),
    "lora_rank": ("adapter.r", integer),
    "lora_alpha": ("adapter.lora_alpha", alpha),
    "lora_dropout": ("adapter.lora_dropout", number),
    "target_modules": ("adapter.target_modules", modules),
    "use_rslora": ("adapter.use_rslora", yes),
    "use_dora": ("adapter.use_dora", yes),
    "adapters": ("adapter.init_from", one),
    "beta": ("preference.beta", number),
    "loss_type": ("preference.loss_type", loss_type),
    "label_smoothing": ("preference.label_smoothing", number),
    "rpo_alpha": ("preference.rpo_alpha", number),
    "desirable_weight": ("preference.desirable_weight", number),
    "undesirable_weight": ("preference.undesirable_weight", number),
}
"""Today's flag -> where it goes in a TrainSpec, and how its words become the value."""

REFUSED = {
    "deepspeed": "say how many processes train, and with what, by ComfyLoop's own settings",
    "fsdp": "say how many processes train, and with what, by ComfyLoop's own settings",
    "device_map": "the model is on one device",
    "resume_from_checkpoint": "an ms-swift checkpoint is gone on from by train_engine = swift alone",
    "system": "put the system message into the rows, where it is served from too",
    "split_dataset_ratio": "nothing is held out by chance: name a --val_dataset",
    "train_dataset_sample": "every row of the file is used: give a smaller file",
    "truncation_strategy": "a row that is too long is an error that names it (skip_bad leaves it out)",
    "model_cache_dir": "name the directory with --model",
    "streaming": "rows are read whole",
    "external_plugins": "no code of others is run",
    "custom_register_path": "no code of others is run",
    "model_author": "no sample is added to yours",
    "model_name": "no sample is added to yours",
    "adam_beta1": "AdamW's is 0.9",
    "adam_epsilon": "AdamW's is 1e-8",
    "optim": "AdamW is what is used",
    "use_liger_kernel": "the head is applied to answer tokens in chunks already",
}
"""Why some flags cannot be honoured; the rest are unknown here."""
