"""Loads the base model with a LoRA for training, and describes it before its weights are read."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils import is_flash_attn_2_available

from comfyloop.errors import ModelError
from comfyloop.models import devices
from comfyloop.models.processors import load_processor
from comfyloop.models.quantization import in_four_bits, keep_unpacked
from comfyloop.models.rope import RopeScaling, max_positions, scale
from comfyloop.train.data.encode import Encoder
from comfyloop.train.data.positions import positions_of
from comfyloop.train.kernels import attention, last_layer, lora, mlp, packing, rms_norm
from comfyloop.train.kernels.losses import Head
from comfyloop.train.prefork import preloaded
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.adapters import save_adapter, save_model
from comfyloop.train.text.neftune import noise
from comfyloop.train.text.trainable import keep_still, make_trainable, trained_modules


@dataclass(frozen=True)
class Description:
    """A model directory, as described by its configuration."""

    config: Any
    processor: Any  # the processor, or the tokenizer of a text-only model
    sees_images: bool
    image_token_id: int | None
    stop_ids: frozenset[int]
    rope_scaling: RopeScaling | None = None

    @property
    def auto(self) -> Any:
        """The class of transformers' that loads it."""
        return AutoModelForImageTextToText if self.sees_images else AutoModelForCausalLM

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
    if rope_scaling is None and (preloaded_description := preloaded.take("description", model)) is not None:
        return preloaded_description  # type: ignore[no-any-return]
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
    """A base model, ready to train."""

    whole: Any  # the transformers model, head included; its linear layers carry the LoRA
    peft: PeftModel | None  # the LoRA on it; None where the weights themselves are trained
    processor: Any
    device: torch.device
    dtype: torch.dtype
    attention: str  # the implementation that the model was loaded with
    rope_scaling: RopeScaling | None = None
    alone: str = ""  # why samples go through the model one by one; empty: packed into one row
    neftune_noise_alpha: float = 0.0
    answers_only: bool = False  # whether its last layer goes on with the places that predict an answer alone
    spread: nn.Module | None = field(default=None, init=False)
    """What the forward pass goes through where several processes share the weights (see `parallel`)."""

    @property
    def module(self) -> nn.Module:
        """The outermost module, which has all parameters under the names that checkpoints use."""
        module: nn.Module = self.whole if self.peft is None else self.peft
        return module

    @property
    def head(self) -> Head:
        """The output layer and, according to the configuration, what is applied to its logits."""
        layer = self.whole.get_output_embeddings()
        text = self.whole.config.get_text_config()
        scale = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
        softcap = getattr(text, "final_logit_softcapping", None) or 0.0
        return Head(layer.weight, layer.bias, float(scale), float(softcap))

    def hidden_states(self, predicting: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states [A, hidden] of the model below its head, at those places [A] of a row."""
        if self.answers_only:
            inputs["predicting"] = predicting
        with contextlib.ExitStack() as stack:
            embedding = self.whole.get_input_embeddings()
            if self.neftune_noise_alpha and embedding.training:
                lengths = [span.length for span in inputs.get("spans", ())] or [inputs["input_ids"].shape[1]]
                stack.enter_context(noise(embedding, self.neftune_noise_alpha, lengths))
            states: Tensor = self.whole.base_model(**inputs, use_cache=False).last_hidden_state[0]
        return states if self.answers_only else states[predicting]

    @property
    def shares_prefixes(self) -> bool:
        """Whether samples in a row can share their common prefix.

        Not with noise that differs between samples, nor with an attention implementation that does not support it.
        """
        return self.attention == "sdpa" and not self.alone and not self.neftune_noise_alpha

    def go_alone(self, why: str) -> None:
        """Process samples one by one, with the model's own attention, for a reason; "" packs them.

        The vision tower keeps what it was loaded with. An implementation that a spec insists on stays: those
        of transformers find the samples of a row by their positions.
        """
        self.alone = why
        if self.attention != "sdpa":
            return
        config = self.whole.config
        text = config.get_text_config()
        # torch's kernel leaves out what Gemma 2 does to attention scores; only `eager` has it
        own = "eager" if getattr(text, "attn_logit_softcapping", None) else self.attention
        name = own if why else packing.NAME
        part = next((part for part in config.sub_configs if getattr(config, part) is text), None)
        self.whole.set_attn_implementation({part: name} if part else name)

    @property
    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]

    def count_parameters(self) -> tuple[int, int]:
        """How many parameters are trained, and how many there are."""
        return sum(_size(p) for _, p in self.trainable), sum(map(_size, self.module.parameters()))

    def train(self) -> None:
        """Training mode for trained parts: a frozen tower's dropout and all batch norms stay in evaluation mode."""
        self.module.eval()
        for part in trained_modules(self.whole):
            part.train()
            keep_still(part)

    def eval(self) -> None:
        self.module.eval()

    def save(self, place: Path, tensors: dict[str, Tensor] | None = None) -> None:
        """Save a PEFT directory, or a model directory under full training.

        Args:
            tensors: Parameters by their names in `module`, where this process itself has only a part of each.
        """
        if self.peft is not None:
            save_adapter(self.peft, place, self.rope_scaling, tensors)
        else:
            save_model(self.whole, self.processor, place, tensors)


def _size(parameter: nn.Parameter) -> int:
    if (quantised := getattr(parameter, "quant_state", None)) is not None:  # two weights a byte
        return math.prod(quantised.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves an empty shell


def load(spec: TrainSpec, description: Description, init_from: Path | None) -> Loaded:
    """Read the weights and put the LoRA on: a fresh one, or the parent version's to go on from.

    Raises:
        ModelError: The weights cannot be read, or the model has no layers that the spec names.
        InvalidInput: The parent adapter does not fit the spec.
    """
    device = devices.choose()
    dtype = devices.precision(device, spec.dtype)
    implementation = choose_attention(spec.attn_implementation, device, dtype)
    can_be_preloaded = spec.quant_method is None and spec.rope_scaling is None
    base = preloaded.take("weights", spec.model, dtype, implementation) if can_be_preloaded else None
    if base is None:
        quantised = (
            in_four_bits(description.auto, description.config, dtype, device) if spec.quant_method else {}
        )
        base = read_weights(spec.model, description, dtype, implementation, **quantised)
    if spec.quant_method is None:
        base.to(device)
    else:
        keep_unpacked(base)
    peft = make_trainable(base, spec, init_from)
    if peft is not None and spec.world_size == 1:
        fuse(peft)
    loaded = Loaded(
        base,
        peft,
        description.processor,
        device,
        dtype,
        base.config.get_text_config()._attn_implementation,
        description.rope_scaling,
        neftune_noise_alpha=spec.neftune_noise_alpha,
        answers_only=last_layer.keep_answers_only(base),
    )
    loaded.go_alone("")
    return loaded


def fuse(peft: PeftModel) -> None:
    """Replace plain modules' forward passes by fused ones, which use fewer passes over memory and keep less for the
    backward pass."""
    lora.fuse_lora(peft)
    rms_norm.fuse_rms_norm(peft)
    mlp.fuse_mlp(peft)
    attention.fuse_attention(peft)


def unfuse(peft: nn.Module) -> int:
    """Restore PEFT's and transformers' own forward passes; returns the number of modules."""
    passes = {module.__name__ for module in (lora, rms_norm, mlp, attention)}
    fused = [
        module
        for module in peft.modules()
        if getattr(module.__dict__.get("forward"), "__module__", "") in passes
    ]
    for module in fused:
        del module.forward
    return len(fused)


def read_weights(
    model: str, description: Description, dtype: torch.dtype, attention: str | None, **more: Any
) -> Any:
    """The transformers model, its weights on the processor. Raises ModelError when they cannot be read."""
    try:
        return description.auto.from_pretrained(
            model, config=description.config, dtype=dtype, attn_implementation=attention, **more
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"The weights of {model} cannot be read: {_first_line(error)}") from None


def choose_attention(choice: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """FlashAttention if it is installed and usable, unless the spec names an implementation; None: the model's
    default."""
    if choice != "auto":
        return choice
    half = device.type == "cuda" and dtype != torch.float32
    return "flash_attention_2" if half and is_flash_attn_2_available() else None


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
