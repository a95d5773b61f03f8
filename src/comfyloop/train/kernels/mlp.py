"""The gated MLP, frozen or with LoRAs, with fewer passes over memory and less memory than autograd needs.

SwiGLU (Shazeer 2020), as Llama and its relatives compute it: ``down(silu(gate(x)) * up(x))``. Backward keeps only
the outputs of `gate` and `up` and recomputes their product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from transformers.activations import SiLUActivation

from comfyloop.train.kernels import lora

PLAIN = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "SmolLM3MLP"}
"""Classes of transformers that compute just that."""


def fuse_mlp(model: nn.Module) -> int:
    """Use the passes below in MLPs of those classes whose weights are frozen and not quantised; returns their
    number."""
    fused = 0
    for module in list(model.modules()):
        fused_forward = _forward_of(module) if _is_gated(module) else None
        if fused_forward is not None:
            module.forward = fused_forward
            fused += 1
    return fused


def _is_gated(module: Any) -> bool:
    return type(module).__name__ in PLAIN and isinstance(module.act_fn, SiLUActivation | nn.SiLU)


def _forward_of(mlp: Any) -> Callable[[Tensor], Tensor] | None:
    """The fused forward pass; None if its three layers are not all frozen or all plain LoRAs."""
    layers: tuple[Any, ...] = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    if all(map(lora.is_plain, layers)):
        as_transformers_does = mlp.forward

        def with_loras(x: Tensor) -> Tensor:
            if not all(map(lora.is_on, layers)):
                out: Tensor = as_transformers_does(x)
            else:
                out = _LoraGatedMlp.apply(x, *lora.arguments(layers))  # type: ignore[no-untyped-call]
            return out

        return with_loras
    if any(type(layer) is not nn.Linear for layer in layers) or any(
        p.requires_grad for p in mlp.parameters()
    ):
        return None
    gate, up, down = layers

    def frozen(x: Tensor) -> Tensor:
        out: Tensor = _GatedMlp.apply(  # type: ignore[no-untyped-call]
            x, gate.weight, gate.bias, up.weight, up.bias, down.weight, down.bias
        )
        return out

    return frozen


class _LoraGatedMlp(torch.autograd.Function):
    """[..., hidden] -> [..., hidden]; of gate, up and down in turn weight, bias, A, B: `lora.arguments`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: Sequence[float], *weights: Any) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        (gated, upped), near = lora.products(rows, scalings[:2], weights[:8])  # [n, inner]
        (out,), far = lora.products(silu(gated).mul_(upped), scalings[2:], weights[8:])
        ctx.save_for_backward(rows, gated, upped, *near, *far)
        ctx.scalings, ctx.dtype, ctx.near = scalings, weights[2].dtype, len(near)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, gated, upped, *layer_tensors = ctx.saved_tensors
        near, far = layer_tensors[: ctx.near], layer_tensors[ctx.near :]
        opened = silu(gated)
        above = [gradients[0].reshape(-1, gradients[0].shape[-1])]
        of_product, of_down = lora.gradients_of(
            opened * upped, ctx.scalings[2:], far, above, ctx.dtype, of_rows=True
        )
        assert of_product is not None
        of_upped = opened.mul_(of_product)
        of_gated = torch.ops.aten.silu_backward(of_product.mul_(upped), gated)
        of_x, of_both = lora.gradients_of(
            rows, ctx.scalings[:2], near, [of_gated, of_upped], ctx.dtype, of_rows=ctx.needs_input_grad[0]
        )
        if of_x is not None:
            of_x = of_x.view(gradients[0].shape)
        return of_x, None, *of_both, *of_down


class _GatedMlp(torch.autograd.Function):
    """[..., hidden] -> [..., hidden]; gate and up [inner, hidden], down [hidden, inner], all frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor,
        gate_bias: Tensor | None,
        up: Tensor,
        up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gated, upped = linear(rows, gate, gate_bias), linear(rows, up, up_bias)  # [n, inner]
        ctx.save_for_backward(gated, upped, gate, up, down)
        return linear(silu(gated).mul_(upped), down, down_bias).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gated, upped, gate, up, down = ctx.saved_tensors
        of_product = gradients[0].reshape(-1, gradients[0].shape[-1]) @ down
        of_x = silu(gated).mul_(of_product) @ up
        of_x.addmm_(torch.ops.aten.silu_backward(of_product.mul_(upped), gated), gate)
        return of_x.view(gradients[0].shape), None, None, None, None, None, None
