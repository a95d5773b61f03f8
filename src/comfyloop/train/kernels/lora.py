"""The forward and backward pass of plain LoRA layers in fewer sweeps over memory than PEFT's.

PEFT computes ``base(x) + B(A(x)) * scaling`` with a tensor for every step. Here it is one autograd function whose
additions are part of the products, also for several layers that read the same states. Beside half-precision
weights A and B are kept in float32, where small updates are not lost, and multiplied in half precision, as under
autocast: PEFT by itself widens all that goes through them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn


def fuse_lora(peft: PeftModel) -> int:
    """Give the LoRA layers that are plain the pass below; how many."""
    layers: list[Any] = [module for module in peft.modules() if is_plain(module)]
    for layer in layers:
        layer.forward = _forward_of(layer, layer.forward)
    return len(layers)


def is_plain(module: Any) -> bool:
    """Whether a module is a LoRA layer without DoRA, dropout, bias or quantised base, its base frozen."""
    return (
        type(module) is Linear
        and type(module.base_layer) is nn.Linear
        and not module.lora_variant
        and list(module.lora_A) == ["default"]
        and isinstance(module.lora_dropout["default"], nn.Identity)
        and module.lora_B["default"].bias is None
        and not module.base_layer.weight.requires_grad
    )


def outputs(layers: Sequence[Any], x: Tensor) -> tuple[Tensor, ...]:
    """What plain LoRA layers make of the same x [..., in]: [..., out] of each."""
    if any(
        layer.disable_adapters or layer.merged or layer.active_adapters != ["default"] for layer in layers
    ):
        return tuple(layer(x) for layer in layers)
    weights: list[Tensor | None] = []
    for layer in layers:
        base, a, b = layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]
        weights += [base.weight, base.bias, a.weight, b.weight]
    out: tuple[Tensor, ...] = _LoraLinears.apply(  # type: ignore[no-untyped-call]
        x, tuple(layer.scaling["default"] for layer in layers), *weights
    )
    return out


def _forward_of(layer: Any, as_peft_does: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or layer.disable_adapters or layer.merged or layer.active_adapters != ["default"]:
            return as_peft_does(x, *args, **kwargs)
        return outputs([layer], x)[0]

    return forward


class _LoraLinears(torch.autograd.Function):
    """[..., out] = x @ weight.T + bias + scaling * (x @ A.T) @ B.T for each layer, the weights and biases frozen.

    x [..., in] and weight [out, in] in the model's precision; A [r, in], B [out, r] in theirs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: Sequence[float], *weights: Any) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        bases, biases, near = (weights[i::4] for i in range(3))
        far = [b.to(x.dtype) for b in weights[3::4]]
        together = torch.cat(near).to(x.dtype)  # [sum of r, in]
        inner = rows @ together.T  # [n, sum of r]
        ctx.ranks = [b.shape[1] for b in far]
        made = []
        for base, bias, b, own, scaling in zip(
            bases, biases, far, torch.split(inner, ctx.ranks, dim=1), scalings, strict=True
        ):
            out = nn.functional.linear(rows, base, bias).addmm_(own, b.T, alpha=scaling)
            made.append(out.view(*x.shape[:-1], -1))
        ctx.save_for_backward(rows, together, inner, *bases, *far)
        ctx.scalings, ctx.dtype = scalings, near[0].dtype
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, together, inner, *weights = ctx.saved_tensors
        count = len(gradients)
        above = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        # Written so that the long side of each narrow matrix is contiguous: twice to four times as fast.
        parts = [g @ b.T.contiguous().T for g, b in zip(above, weights[count:], strict=True)]
        of_inner = torch.cat([p.mul_(s) for p, s in zip(parts, ctx.scalings, strict=True)], dim=1)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = above[0] @ weights[0]
            for gradient, base in zip(above[1:], weights[1:count], strict=True):
                of_x.addmm_(gradient, base)
            of_x = of_x.addmm_(of_inner, together).view(*gradients[0].shape[:-1], -1)
        of_near = torch.split((of_inner.T @ rows).to(ctx.dtype), ctx.ranks)
        of_weights: list[Tensor | None] = []
        for own, gradient, scaling, of_a in zip(
            torch.split(inner, ctx.ranks, dim=1), above, ctx.scalings, of_near, strict=True
        ):
            of_b = (own.T @ gradient).to(ctx.dtype).mul_(scaling).T
            of_weights += [None, None, of_a, of_b]
        return of_x, None, *of_weights
