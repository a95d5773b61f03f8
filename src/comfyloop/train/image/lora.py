"""The LoRA on an image model's UNet and, where asked for, on its text encoders."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from comfyloop.errors import InvalidInput, ModelError
from comfyloop.train.image.model import ImageModel
from comfyloop.train.image.weights import refuse_no_numbers
from comfyloop.train.specs.image import ImageAdapterSpec

ADAPTER = "default"

UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
UNET_WIDE = (
    *UNET_ATTENTION,
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
)
FLOW_ATTENTION = (*UNET_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FLOW_WIDE = (*FLOW_ATTENTION, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
_OTHER_NAMES = ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class LoraPart:
    """The LoRA of one module of the model.

    Attributes:
        key: The module's name in a LoRA file: `lora_unet_down_blocks_0_…` (kohya's names).
        down, up: Weights [r, in] and [out, r], or [r, in, kh, kw] and [out, r, 1, 1] of a convolution.
        alpha: The change is up @ down times alpha / r.
    """

    key: str
    down: nn.Parameter
    up: nn.Parameter
    alpha: float


def add(model: ImageModel, spec: ImageAdapterSpec) -> None:
    """Put fresh LoRA layers on the model, the way diffusers' own training examples do.

    Raises:
        InvalidInput: The spec wants one on text encoders that are not trained here.
    """
    if spec.text_encoder and model.is_flow:
        raise InvalidInput(
            "The text encoders of SD3 and Flux are not trained.", "Set adapter.text_encoder to false."
        )
    attention, wide = (FLOW_ATTENTION, FLOW_WIDE) if model.is_flow else (UNET_ATTENTION, UNET_WIDE)
    targets = attention if spec.target_modules == "attention" else wide
    model.denoiser.add_adapter(_config(spec, targets), adapter_name=ADAPTER)
    if spec.text_encoder:
        for encoder in model.text_encoders:
            encoder.model.add_adapter(_config(spec, TEXT_ATTENTION), adapter_name=ADAPTER)
    for _, parameter in trainable(model):
        parameter.data = parameter.data.float()


def _config(spec: ImageAdapterSpec, targets: tuple[str, ...]) -> LoraConfig:
    return LoraConfig(
        r=spec.r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        init_lora_weights="gaussian",
        target_modules=list(targets),
    )


def trained_modules(model: ImageModel) -> list[tuple[str, nn.Module]]:
    """Each trained module with the prefix of its keys in a LoRA file."""
    if model.is_flow:
        return [("lora_transformer", model.denoiser)]
    names = ["te1", "te2"] if model.family == "sdxl" else ["te"]
    encoders = [(f"lora_{n}", e.model) for n, e in zip(names, model.text_encoders, strict=False)]
    return [("lora_unet", model.denoiser), *encoders]


def parts(model: ImageModel) -> list[LoraPart]:
    lora_parts = []
    for prefix, module in trained_modules(model):
        # transformers flattened CLIPTextModel; in files the inner model keeps its name
        inner = "" if module is model.denoiser or hasattr(module, "text_model") else "text_model."
        for name, layer in module.named_modules():
            if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
                key = f"{prefix}_{(inner + name).replace('.', '_')}"
                down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                lora_parts.append(LoraPart(key, down, up, float(layer.lora_alpha[ADAPTER])))
    return lora_parts


def trainable(model: ImageModel) -> list[tuple[str, nn.Parameter]]:
    weights = []
    for part in parts(model):
        weights += [(f"{part.key}.lora_down.weight", part.down), (f"{part.key}.lora_up.weight", part.up)]
    return weights


def read_into(model: ImageModel, tensors: Mapping[str, Tensor], source: str) -> None:
    """Start from a parent version's file instead of from nothing.

    Raises:
        ModelError: The file has other modules, another rank or another alpha.
    """
    with torch.no_grad():
        expected = set()
        for part in parts(model):
            names = [f"{part.key}.{n}" for n in ("lora_down.weight", "lora_up.weight", "alpha")]
            expected |= set(names)
            missing = [name for name in names if name not in tensors]
            if missing:
                raise _lacking(source, missing[0], tensors)
            down, up, alpha = (tensors[name] for name in names)
            _check_fits(source, part, down, up, alpha)
            part.down.copy_(down)
            part.up.copy_(up)
    unknown = sorted(tensors.keys() - expected)
    if unknown:
        raise ModelError(
            f"{source} also changes {unknown[0]}, which this run would drop.",
            "Set target_modules and text_encoder as its run had them.",
        )


def _lacking(source: str, name: str, tensors: Mapping[str, Tensor]) -> ModelError:
    if any(other.startswith(_OTHER_NAMES) for other in tensors):
        return ModelError(
            f"{source} calls the UNet's layers input_blocks and so on, as kohya's trainer does for SDXL; a LoRA to "
            "go on from has diffusers' names (down_blocks ...).",
            "Begin afresh, without init_from.",
        )
    if name.endswith(".alpha") and name.replace(".alpha", ".lora_down.weight") in tensors:
        return ModelError(
            f"{source} lacks {name}, so it is not known how much of that module it adds.",
            "Write the alphas that it was trained with into it, or begin afresh, without init_from.",
        )
    return ModelError(f"{source} lacks {name}.", "Train with its parent's target_modules.")


def _check_fits(source: str, part: LoraPart, down: Tensor, up: Tensor, alpha: Tensor) -> None:
    """Raise ModelError, with the difference, if a LoRA of one module does not fit this model and spec."""
    r = down.shape[0] if down.ndim else 0
    scale = alpha_of(source, part.key, alpha)
    if down.shape[1:] != part.down.shape[1:] or up.shape != (*part.up.shape[:1], r, *part.up.shape[2:]):
        raise ModelError(
            f"{source} is for another base model, or damaged: its {part.key} has the shapes {list(down.shape)} and "
            f"{list(up.shape)}, and this model's {list(part.down.shape)} and {list(part.up.shape)}.",
            "Name the base model that it was trained on, or begin afresh, without init_from.",
        )
    refuse_no_numbers(f"LoRA {source}", ((f"{part.key}.lora_down", down), (f"{part.key}.lora_up", up)))
    if r != len(part.down) or not math.isclose(
        scale, part.alpha, rel_tol=1e-3
    ):  # half precision rounds so far
        raise ModelError(
            f"{source} has rank {r} and alpha {scale:.6g} at {part.key}, the spec says {len(part.down)} and "
            f"{part.alpha:.6g}.",
            "Set r and lora_alpha to those of the parent.",
        )


def alpha_of(source: str, key: str, alpha: Tensor) -> float:
    """A module's alpha. Raises ModelError when it is no number above 0."""
    value = float(alpha.flatten()[0]) if alpha.numel() == 1 else math.nan
    if not math.isfinite(value) or value <= 0:
        raise ModelError(
            f"{source} is damaged: the alpha of its {key} is no number above 0.",
            "Begin afresh, without init_from.",
        )
    return value


Weights = list[Tensor]


def copy_of(model: ImageModel) -> Weights:
    return [parameter.detach().clone() for _, parameter in trainable(model)]


@contextlib.contextmanager
def reference(model: ImageModel, start: Weights | None) -> Iterator[None]:
    """The model as it was before training: with the LoRA it began with (`start`), or without one (None)."""
    if start is None:
        modules = (m for _, module in trained_modules(model) for m in module.modules())
        layers = [module for module in modules if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        yield
        for layer in layers:
            layer.enable_adapters(True)
        return
    parameters = [parameter for _, parameter in trainable(model)]
    now = [parameter.data for parameter in parameters]
    for parameter, weight in zip(parameters, start, strict=True):
        parameter.data = weight
    yield
    for parameter, weight in zip(parameters, now, strict=True):
        parameter.data = weight
