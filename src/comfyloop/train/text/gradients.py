"""Compares a run's gradients with plain autograd, once, before the first step.

Plain means: PEFT's and transformers' own modules instead of the fused ones, four-bit weights dequantised and
multiplied by torch, no activation checkpointing. A wrong backward pass does not show in log-probabilities, and a
run with it would end without an error.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from comfyloop.models.quantization import four_bit_layers
from comfyloop.train.kernels import attention, last_layer, lora, mlp, rms_norm
from comfyloop.train.text.models import Loaded

BOUND = 1e-3
"""How far gradients of a kind of layer may be apart, as a share of their length, in float32."""
ROUGH_BOUND = 0.75
"""The same in half precision. Two right orders of rounding have been seen 0.36 apart (SmolLM2 in four bits, eight
answer tokens), and may be more so where products of other shapes round otherwise; packed weights make it 1."""
NEGLIGIBLE = 0.01
"""Of the longest gradient: what is shorter (the bias of keys, which attention does not feel) is rounding."""
SLIGHT = 0.005
"""Spread of what is put in the place of a fresh LoRA's zeros, so that all of it has a gradient."""

LogProbs = Callable[[], Tensor]
_OWN = {module.__name__ for module in (attention, last_layer, lora, mlp, rms_norm)}


@dataclass(frozen=True)
class Difference:
    """How gradients of one kind of layer differ from plain autograd's: the difference's length over theirs."""

    kind: str
    share: float


def disagreement(model: Loaded, ours: LogProbs, plain: LogProbs) -> str:
    """What is wrong with a run's gradients, as the end of a sentence; "" if nothing is.

    Args:
        ours, plain: Log-probabilities of the answers of some samples, as a step computes them and by the model's
            own code.
    """
    worst = max(differences(model, ours, plain), key=lambda difference: difference.share, default=None)
    bound = BOUND if model.dtype == torch.float32 else ROUGH_BOUND
    if worst is None or worst.share <= bound:
        return ""
    return f"gradients of {worst.kind} are {worst.share:.0%} of their length off those of plain autograd"


def differences(model: Loaded, ours: LogProbs, plain: LogProbs) -> list[Difference]:
    """For each kind of trained layer, the relative difference of the gradients in its first and its last layer."""
    chosen = _first_and_last(model.trainable)
    with _slight_lora(model.module):
        with _checkpointing_as_in_training(model.module):
            gradients = _gradients(ours, chosen)
        with _plain(model.module):
            expected = _gradients(plain, chosen)
    lengths = {kind: _length([expected[name] for name in names]) for kind, names in _kinds(expected).items()}
    least = NEGLIGIBLE * max(lengths.values(), default=0.0)
    return [
        Difference(
            kind,
            _length([gradients[name] - expected[name] for name in names]) / max(lengths[kind], least, 1e-30),
        )
        for kind, names in _kinds(expected).items()
    ]


def _gradients(log_probs: LogProbs, chosen: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    with torch.enable_grad():
        gradients = torch.autograd.grad(-log_probs().sum(), list(chosen.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter, dtype=torch.float32) if gradient is None else gradient.float()
        for (name, parameter), gradient in zip(chosen.items(), gradients, strict=True)
    }


def _length(parts: list[Tensor]) -> float:
    """The Euclidean norm over all of them; NaN counts as infinite."""
    length = float(torch.stack([part.norm() for part in parts]).norm())
    return length if length == length else float("inf")


def _kind(name: str) -> str:
    """A parameter's name without the number of its layer, nor what PEFT puts around it."""
    plain = re.sub(r"base_model\.model\.|\.default|\.modules_to_save|\.weight$", "", name)
    return re.sub(r"\.\d+(?=\.)", "", plain)


def _kinds(gradients: dict[str, Tensor]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for name in gradients:
        kinds.setdefault(_kind(name), []).append(name)
    return kinds


def _first_and_last(trainable: list[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    first: dict[str, tuple[str, nn.Parameter]] = {}
    last: dict[str, tuple[str, nn.Parameter]] = {}
    for name, parameter in trainable:
        first.setdefault(_kind(name), (name, parameter))
        last[_kind(name)] = (name, parameter)
    return dict([*first.values(), *last.values()])


@contextlib.contextmanager
def _slight_lora(model: nn.Module) -> Iterator[None]:
    """A fresh LoRA changes nothing, and its first half has no gradient: give it something small to add."""
    fresh: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_B")]
        for layer in layers:
            for name, b in layer.lora_B.items():
                if not b.weight.any():
                    random = torch.Generator(b.weight.device).manual_seed(len(fresh))
                    fresh.append((b.weight, b.weight.clone()))
                    b.weight.normal_(std=SLIGHT / float(layer.scaling[name]), generator=random)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, was in fresh:
                weight.copy_(was)


@contextlib.contextmanager
def _checkpointing_as_in_training(model: nn.Module) -> Iterator[None]:
    """Enable activation checkpointing as in training, with all randomness disabled."""
    layers = [
        module
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) and not getattr(module, "dropout", 0)
    ]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True  # this module alone: what is in it stays still
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.training = was


@contextlib.contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """The model's modules as PEFT and transformers wrote them, four-bit weights as torch multiplies them."""
    replaced_forwards: list[tuple[Any, Any]] = []
    four_bits = {id(layer) for layer in four_bit_layers(model)}
    for module in model.modules():
        own = module.__dict__.get("forward")
        if id(module) in four_bits:
            replaced_forwards.append((module, own))
            module.forward = _dequantised(module)
        elif own is not None and getattr(own, "__module__", "") in _OWN:
            replaced_forwards.append((module, own))
            del module.forward
    try:
        yield
    finally:
        for module, own in replaced_forwards:
            if own is not None:
                module.forward = own
            else:
                del module.forward


def _dequantised(layer: Any) -> Callable[[Tensor], Tensor]:
    from bitsandbytes.functional import dequantize_4bit

    def forward(x: Tensor) -> Tensor:
        def product(rows: Tensor) -> Tensor:
            dtype = layer.compute_dtype or rows.dtype
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
            bias = None if layer.bias is None else layer.bias.to(dtype)
            return nn.functional.linear(rows.to(dtype), weight, bias).to(rows.dtype)

        # A layer's whole weight is made again when its gradient is asked for: all of them have no room together.
        out: Tensor = checkpoint(product, x, use_reentrant=False)
        return out

    return forward
