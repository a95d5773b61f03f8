"""Selects the weights that a run trains: a LoRA on parts of a model, or those parts in full."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from comfyloop.errors import InvalidInput, ModelError
from comfyloop.models.lora_start import refuse_changed_base
from comfyloop.models.parts import Part, Parts
from comfyloop.texts import in_a_line
from comfyloop.train.specs.text import AdapterSpec, TrainSpec

# Q/K/V/O as the families name them, fused ones included.
_ATTENTION = (
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv",
    "wq", "wk", "wv", "wo", "dense", "qkv", "proj", "q", "k", "v", "query", "key", "value",
    "projection_layer",
)  # fmt: skip
_ATTENTION_PARENT = re.compile(r"(^|\.)(self_attn|attn|attention|self_attention)(\.attention)?$")


def trained_parts(spec: TrainSpec) -> tuple[Part, ...]:
    frozen: dict[Part, bool] = {
        "llm": spec.freeze_llm, "vit": spec.freeze_vit, "aligner": spec.freeze_aligner,
    }  # fmt: skip
    return tuple(part for part, is_frozen in frozen.items() if not is_frozen)


def make_trainable(base: Any, spec: TrainSpec, init_from: Path | None) -> PeftModel | None:
    """Make exactly the parts that the spec names trainable; returns the LoRA that was added for it.

    Raises:
        ModelError: The model has no layers, or no parts, that the spec names.
        InvalidInput: The parent adapter does not fit the spec.
    """
    parts, wanted = Parts(base), trained_parts(spec)
    have = {parts.of(name) for name, _ in base.named_parameters()}
    for part in wanted:
        if part not in have:
            raise ModelError(
                f"{type(base).__name__} has no {part}, so freeze_{part} = false trains nothing.",
                f"Leave freeze_{part} at true.",
            )
    if spec.gradient_checkpointing:
        _checkpoint_activations(base.get_decoder())
    if spec.vit_gradient_checkpointing and "vit" in wanted:
        _checkpoint_activations(parts.vit)
    if spec.tuner_type == "full":
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(parts.of(name) in wanted)
        return None
    if init_from is not None:
        peft = _go_on_from(base, init_from, spec.adapter)
        for name, parameter in base.named_parameters():
            if parameter.requires_grad and parts.of(name) not in wanted:
                parameter.requires_grad_(False)
        trained = {parts.of(name) for name, p in base.named_parameters() if p.requires_grad}
        if missing := [part for part in wanted if part not in trained]:
            raise InvalidInput(
                f"The parent adapter trains nothing of the {missing[0]}, and freeze_{missing[0]} is false.",
                f"Set freeze_{missing[0]} to true, or train afresh.",
            )
        return peft
    _refuse_lost(base, spec.adapter.modules_to_save)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.adapter.r,
        lora_alpha=spec.adapter.lora_alpha,
        lora_dropout=spec.adapter.lora_dropout,
        target_modules=lora_targets(base, spec.adapter.target_modules, wanted),
        modules_to_save=list(spec.adapter.modules_to_save) or None,
        use_rslora=spec.adapter.use_rslora,
        use_dora=spec.adapter.use_dora,
    )
    return get_peft_model(base, config)


def lora_targets(
    base: Any, choice: str | tuple[str, ...], wanted: tuple[Part, ...] = ("llm",)
) -> str | list[str]:
    """PEFT's `target_modules` for exactly the wanted parts.

    A plain list of layer names where that says it exactly (it is understood everywhere), otherwise a regular
    expression over full names that keeps the other parts out, or the full names.
    """
    parts = Parts(base)
    head = base.get_output_embeddings()
    linear = {
        name: parts.of(name)
        for name, module in base.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module is not head
    }
    inside = {name for name, part in linear.items() if part in wanted}
    if choice == "attention":  # a projector has no attention: all of it
        chosen = {name for name in inside if linear[name] == "aligner" or _is_attention(name)}
    elif choice == "all-linear":
        chosen = inside
    elif isinstance(choice, str):
        head_name = next((name for name, module in base.named_modules() if module is head), "")
        if re.fullmatch(choice, head_name):
            raise ModelError(
                f"target_modules = {choice!r} names the output layer {head_name}, which is applied to answers alone "
                "and cannot carry a LoRA here.",
                "Write a pattern that leaves it out.",
            )
        chosen = {name for name in linear if re.fullmatch(choice, name)}
        if chosen:
            return choice
    else:
        chosen = {name for name in inside if name.rpartition(".")[2] in choice or name in choice}
    if missing := [part for part in wanted if part not in {linear[name] for name in chosen}]:
        raise ModelError(
            f"target_modules = {choice!r} names no linear layer of the {missing[0]} of {type(base).__name__}.",
            f"It has: {_leaves(n for n in inside if linear[n] == missing[0]) or 'none'}.",
        )
    if not isinstance(choice, str):
        ends = {name.rpartition(".")[2] for name in inside}
        if lost := [name for name in choice if name not in inside and name not in ends]:
            raise ModelError(
                f"target_modules names {lost[0]!r}, which is no linear layer of what is trained of "
                f"{type(base).__name__}.",
                f"It has: {_leaves(inside)}; embeddings and the output layer carry no LoRA here. Leave it out.",
            )
    every = [name for name, _ in base.named_modules()]
    leaves = sorted({name.rpartition(".")[2] for name in chosen})
    if {name for name in every if name.rpartition(".")[2] in leaves} == chosen:
        return leaves
    prefix = re.escape(parts.prefix) + r"\." if parts.prefix else ""
    within_llm = rf"{prefix}(?:.*\.)?(?:{'|'.join(map(re.escape, leaves))})"
    of_any_layer = "|".join(sorted({re.sub(r"\d+", r"\\d+", re.escape(name)) for name in chosen}))
    for pattern in (within_llm, of_any_layer):
        if {name for name in every if re.fullmatch(pattern, name)} == chosen:
            return pattern
    return sorted(chosen)


def _refuse_lost(base: Any, saved: Iterable[str]) -> None:
    """Refuse names in `modules_to_save` that match no module, which PEFT ignores; they are suffixes of full module
    names."""
    names = [name for name, _ in base.named_modules()]
    if lost := [one for one in saved if not any(name.endswith(one) for name in names)]:
        raise ModelError(
            f"modules_to_save names {lost[0]!r}, and no module of {type(base).__name__} is called so.",
            "Leave it out, or write it as the model does.",
        )


def _is_attention(name: str) -> bool:
    parent, _, leaf = name.rpartition(".")
    return leaf in _ATTENTION and _ATTENTION_PARENT.search(parent) is not None


def _leaves(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _checkpoint_activations(model: Any) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # It also makes the embeddings' output want a gradient, which only the re-entrant kind needs.
    model.disable_input_require_grads()


def trained_modules(base: Any) -> list[nn.Module]:
    """The parts of a model that have something to train, as modules: the decoder, the vision tower, a projector."""
    parts = Parts(base)
    trained = {parts.of(name) for name, p in base.named_parameters() if p.requires_grad}
    modules = [base.get_decoder()] if "llm" in trained else []
    modules += [parts.vit] if "vit" in trained else []
    if "aligner" in trained:
        modules += [
            module
            for name, module in base.named_modules()
            if parts.of(name) == "aligner" and parts.of(name.rpartition(".")[0]) != "aligner"
        ]
    return modules


def keep_still(module: nn.Module) -> None:
    """Keep modules that collect batch statistics in evaluation mode: batches here are small."""
    module.apply(partial(_still_if, kinds=nn.modules.batchnorm._BatchNorm))


def _still_if(module: nn.Module, kinds: type[nn.Module]) -> None:
    if isinstance(module, kinds):
        module.eval()


def adapter_config(path: Path) -> dict[str, Any]:
    """The PEFT configuration of the adapter to continue from. Raises InvalidInput if it cannot be read."""
    if not (path / "adapter_config.json").is_file():
        raise InvalidInput(
            f"{path} is not a PEFT directory to go on from: it has no adapter_config.json.",
            "Name the adapter of the parent version, or train afresh.",
        )
    try:
        config: dict[str, Any] = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(
            f"{path / 'adapter_config.json'} cannot be read: {error}.", "Train afresh."
        ) from None
    return config


def _go_on_from(base: Any, path: Path, adapter_spec: AdapterSpec) -> PeftModel:
    refuse_changed_base(f"The adapter {path}", adapter_config(path))
    try:
        peft = PeftModel.from_pretrained(base, str(path), is_trainable=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidInput(
            f"The adapter {path} does not fit the base model: {in_a_line(str(error), 300).rstrip('.')}.",
            "Train afresh, or name the base model that it was trained on.",
        ) from None
    config = peft.peft_config["default"]
    for name in ("r", "lora_alpha", "use_rslora", "use_dora"):
        have, want = getattr(config, name), getattr(adapter_spec, name)
        if have != want:
            raise InvalidInput(
                f"The parent adapter was trained with {name} = {have} and this run asks for {want}.",
                "Training goes on only with the parent's values: set them so, or train afresh.",
            )
    return peft
