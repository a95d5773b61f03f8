"""The forward and backward pass of a plain LoRA layer in fewer sweeps over memory than PEFT's.

PEFT computes ``base(x) + B(A(x)) * scaling`` with a tensor for every step. Here it is one autograd function whose
additions are part of the products. Beside half-precision weights A and B are kept in float32, where small updates
are not lost, and multiplied in half precision, as under autocast: PEFT by itself widens all that goes through
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn


def use_fewer_sweeps(peft: PeftModel) -> int:
    """Give the LoRA layers that are plain (no DoRA, dropout, bias or quantised base) the pass below; how many."""
    layers: list[Any] = [module for module in peft.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = _forward_of(layer, layer.forward)
    return len(layers)


def _is_plain(module: Any) -> bool:
    return (
        type(module) is Linear
        and type(module.base_layer) is nn.Linear
        and not module.lora_variant
        and list(module.lora_A) == ["default"]
        and isinstance(module.lora_dropout["default"], nn.Identity)
        and module.lora_B["default"].bias is None
        and not module.base_layer.weight.requires_grad
    )


def _forward_of(layer: Any, as_peft_does: Callable[..., Tensor]) -> Callable[..., Tensor]:
    base, a, b = layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or layer.disable_adapters or layer.merged or layer.active_adapters != ["default"]:
            return as_peft_does(x, *args, **kwargs)
        out: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, a.weight, b.weight, layer.scaling["default"]
        )
        return out

    return forward


class _LoraLinear(torch.autograd.Function):
    """[..., out] = x @ weight.T + bias + scaling * (x @ A.T) @ B.T, the weight and bias frozen.

    x [..., in] and weight [out, in] in the model's precision; A [r, in], B [out, r] in theirs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        near, far = a.to(x.dtype), b.to(x.dtype)
        inner = rows @ near.T  # [n, r]
        ctx.save_for_backward(rows, weight, near, far, inner)
        ctx.scaling, ctx.dtypes = scaling, (a.dtype, b.dtype)
        out = nn.functional.linear(rows, weight, bias).addmm_(inner, far.T, alpha=scaling)
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, near, far, inner = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        # Written so that the long side of each narrow matrix is contiguous: twice to four times as fast.
        of_inner = (gradient @ far.T.contiguous().T).mul_(ctx.scaling)  # [n, r]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_inner, near).view(*gradients[0].shape[:-1], weight.shape[1])
        of_a = (of_inner.T @ rows).to(ctx.dtypes[0])
        of_b = (inner.T @ gradient).to(ctx.dtypes[1]).mul_(ctx.scaling).T
        return of_x, None, None, of_a, of_b, None
