"""The base model with a LoRA on it, ready to train; and what can be told of it before its weights are
read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)

from comfyloop.errors import InvalidInput, ModelError
from comfyloop.processors import load_processor
from comfyloop.rope import RopeScaling, max_positions, scale
from comfyloop.train import held, packing
from comfyloop.train.adapters import save_adapter
from comfyloop.train.encode import Encoder
from comfyloop.train.losses import Head
from comfyloop.train.positions import positions_of
from comfyloop.train.spec import AdapterSpec, TrainSpec

# Q/K/V/O as the families name them, fused ones included.
_ATTENTION = (
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv",
    "wq", "wk", "wv", "wo", "dense",
)  # fmt: skip
_ATTENTION_PARENT = re.compile(r"(^|\.)(self_attn|attn|attention|self_attention)$")


@dataclass(frozen=True)
class Description:
    """A model directory as far as its configuration tells."""

    config: Any
    processor: Any  # the processor, or the tokenizer of a text-only model
    sees_images: bool
    image_token_id: int | None
    stop_ids: frozenset[int]
    rope_scaling: RopeScaling | None = None

    def encoder(self, spec: TrainSpec) -> Encoder:
        return Encoder(
            self.processor,
            sees_images=self.sees_images,
            image_token_id=self.image_token_id,
            stop_ids=self.stop_ids,
            positions=positions_of(self.config),
            max_positions=max_positions(self.config),
            max_length=spec.max_length,
            max_pixels=spec.max_pixels,
            max_image_pixels=spec.max_image_pixels,
            train_on=spec.train_on,
        )


def describe(model: str, rope_scaling: RopeScaling | None = None) -> Description:
    """Read a model's configuration and processor, no weights.

    Raises:
        ModelError: It does not exist, lacks its configuration, tokenizer or processor, or its positions cannot
            be scaled so.
    """
    if rope_scaling is None and (kept := held.take("description", model)) is not None:
        return kept  # type: ignore[no-any-return]
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise ModelError(f"There is no model directory {model}.", "Name a directory or a hub id that exists.")
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model} cannot be read as a model: {_first_line(error)}",
            "It needs a config.json of transformers.",
        ) from None
    sees_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    try:
        processor: Any = (
            load_processor(model, config) if sees_images else AutoTokenizer.from_pretrained(model)
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{model} has no usable {'processor' if sees_images else 'tokenizer'}: {_first_line(error)}",
            "Copy the tokenizer (and processor) files of the original model into that directory.",
        ) from None
    tokenizer = processor.tokenizer if sees_images else processor
    scale(config, rope_scaling)
    return Description(
        config=config,
        processor=processor,
        sees_images=sees_images,
        image_token_id=_image_token_id(config, processor) if sees_images else None,
        stop_ids=_stop_ids(model, tokenizer),
        rope_scaling=rope_scaling,
    )


@dataclass
class Loaded:
    """A base model wearing a trainable LoRA."""

    peft: PeftModel
    device: torch.device
    dtype: torch.dtype
    attention: str  # the implementation that the model was loaded with
    rope_scaling: RopeScaling | None = None
    alone: str = ""  # why samples go through the model one by one; empty: packed into one row

    @property
    def whole(self) -> Any:
        """The transformers model, head included; its linear layers carry the LoRA."""
        return self.peft.get_base_model()

    @property
    def head(self) -> Head:
        """The output layer and, as far as the configuration tells, what is done to its logits."""
        layer = self.whole.get_output_embeddings()
        text = self.whole.config.get_text_config()
        scale = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
        softcap = getattr(text, "final_logit_softcapping", None) or 0.0
        return Head(layer.weight, layer.bias, float(scale), float(softcap))

    def hidden_states(self, **inputs: Any) -> Tensor:
        """Last hidden states [1, L, hidden] of the model below its head."""
        states: Tensor = self.whole.base_model(**inputs, use_cache=False).last_hidden_state
        return states

    def go_alone(self, why: str) -> None:
        """Have samples go through the model one by one, with its own attention, for a reason; "" packs them.

        The vision tower keeps what it was loaded with. An implementation that a spec insists on stays: those
        of transformers find the samples of a row by their positions.
        """
        self.alone = why
        if self.attention != "sdpa":
            return
        name = self.attention if why else packing.NAME
        config = self.whole.config
        text = config.get_text_config()
        part = next((part for part in config.sub_configs if getattr(config, part) is text), None)
        self.whole.set_attn_implementation({part: name} if part else name)

    @property
    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.peft.named_parameters() if p.requires_grad]

    def count_parameters(self) -> tuple[int, int]:
        """How many parameters are trained, and how many there are."""
        return sum(p.numel() for _, p in self.trainable), sum(p.numel() for p in self.peft.parameters())

    def train(self) -> None:
        """Training mode for the language model only: a frozen tower's dropout and batch norms stay still."""
        self.peft.eval()
        self.whole.get_decoder().train()

    def eval(self) -> None:
        self.peft.eval()

    def save(self, place: Path) -> None:
        save_adapter(self.peft, place, self.rope_scaling)


def load(spec: TrainSpec, description: Description, init_from: Path | None) -> Loaded:
    """Read the weights and put the LoRA on: a fresh one, or the parent version's to go on from.

    Raises:
        ModelError: The weights cannot be read, or the model has no layers that the spec names.
        InvalidInput: The parent adapter does not fit the spec.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_dtype(spec.dtype, device)
    attention = None if spec.attn_implementation == "auto" else spec.attn_implementation
    base = held.take("weights", spec.model, dtype, attention) if spec.rope_scaling is None else None
    if base is None:
        base = read_weights(spec.model, description, dtype, attention)
    base.to(device)
    if spec.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if init_from is not None:
        peft = _go_on_from(base, init_from, spec.adapter)
    else:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=spec.adapter.r,
            lora_alpha=spec.adapter.lora_alpha,
            lora_dropout=spec.adapter.lora_dropout,
            target_modules=lora_targets(base, spec.adapter.target_modules),
            use_rslora=spec.adapter.use_rslora,
            use_dora=spec.adapter.use_dora,
        )
        peft = get_peft_model(base, config)
    own_attention = base.config.get_text_config()._attn_implementation
    loaded = Loaded(peft, device, dtype, own_attention, description.rope_scaling)
    loaded.go_alone("")
    return loaded


def read_weights(model: str, description: Description, dtype: torch.dtype, attention: str | None) -> Any:
    """The transformers model, its weights on the processor. Raises ModelError when they cannot be read."""
    auto = AutoModelForImageTextToText if description.sees_images else AutoModelForCausalLM
    try:
        return auto.from_pretrained(
            model, config=description.config, dtype=dtype, attn_implementation=attention
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"The weights of {model} cannot be read: {_first_line(error)}") from None


def choose_dtype(asked: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, float32 otherwise, unless the spec insists."""
    if asked != "auto":
        dtype: torch.dtype = getattr(torch, asked)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def lora_targets(base: Any, asked: str | tuple[str, ...]) -> str | list[str]:
    """What PEFT's `target_modules` must be, so that only the language model is touched.

    A plain list of layer names where that says it exactly (it is understood everywhere), otherwise a regular
    expression over full names that keeps the vision tower and the projector out.
    """
    decoder = base.get_decoder()
    prefix = next(name for name, module in base.named_modules() if module is decoder)
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    linear |= {
        name for name, module in base.named_modules() if type(module).__name__ in {"Conv1D", "Linear4bit"}
    }
    inside = {name for name in linear if name.startswith(prefix + ".")}
    if asked == "attention":
        wanted = {
            name
            for name in inside
            if name.rpartition(".")[2] in _ATTENTION and _ATTENTION_PARENT.search(name.rpartition(".")[0])
        }
    elif asked == "all-linear":
        wanted = inside
    elif isinstance(asked, str):
        wanted = {name for name in linear if re.fullmatch(asked, name)}
        if wanted:
            return asked
    else:
        wanted = {name for name in inside if name.rpartition(".")[2] in asked or name in asked}
    if not wanted:
        raise ModelError(
            f"The language model ({type(decoder).__name__}) has no linear layer that "
            f"target_modules = {asked!r} names.",
            f"It has: {', '.join(sorted({name.rpartition('.')[2] for name in inside}))}.",
        )
    leaves = sorted({name.rpartition(".")[2] for name in wanted})
    named_so = {name for name, _ in base.named_modules() if name.rpartition(".")[2] in leaves}
    if named_so == wanted:
        return leaves
    pattern = rf"{re.escape(prefix)}\.(?:.*\.)?(?:{'|'.join(map(re.escape, leaves))})"
    if {name for name, _ in base.named_modules() if re.fullmatch(pattern, name)} == wanted:
        return pattern
    return sorted(wanted)


def _go_on_from(base: Any, path: Path, asked: AdapterSpec) -> PeftModel:
    if not (path / "adapter_config.json").is_file():
        raise InvalidInput(
            f"{path} is not a PEFT directory to go on from: it has no adapter_config.json.",
            "Name the adapter of the parent version, or train afresh.",
        )
    try:
        peft = PeftModel.from_pretrained(base, str(path), is_trainable=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidInput(
            f"The adapter {path} does not fit the base model: {_first_line(error)}",
            "Train afresh, or name the base model that it was trained on.",
        ) from None
    config = peft.peft_config["default"]
    for name in ("r", "lora_alpha", "use_rslora", "use_dora"):
        have, want = getattr(config, name), getattr(asked, name)
        if have != want:
            raise InvalidInput(
                f"The parent adapter was trained with {name} = {have} and this run asks for {want}.",
                "Training goes on only with the parent's values: set them so, or train afresh.",
            )
    return peft


def _image_token_id(config: Any, processor: Any) -> int | None:
    for owner, name in (
        (config, "image_token_id"), (config, "image_token_index"), (processor, "image_token_id"),
    ):  # fmt: skip
        value = getattr(owner, name, None)
        if isinstance(value, int):
            return value
    return None


def _stop_ids(model: str, tokenizer: Any) -> frozenset[int]:
    ids: set[int] = set()
    try:
        eos = GenerationConfig.from_pretrained(model).eos_token_id
        ids.update([eos] if isinstance(eos, int) else eos or [])
    except OSError:
        pass  # no generation_config.json: the tokenizer's word is all there is
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
