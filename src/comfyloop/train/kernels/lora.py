"""The forward and backward pass of plain LoRA layers in fewer passes over memory than PEFT's.

PEFT computes ``base(x) + B(A(x)) * scaling`` with a tensor for every step. Here it is one autograd function that
fuses additions into the products, also for several layers with the same input. With half-precision weights, A and B
are kept in float32, so that small updates are not lost, and multiplied in half precision, as under autocast; PEFT
itself would convert the activations to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn


def fuse_lora(peft: PeftModel) -> int:
    """Use the pass below in plain LoRA layers; returns their number."""
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
    """The outputs [..., out] of plain LoRA layers for the same x [..., in]."""
    if not all(map(is_on, layers)):
        return tuple(layer(x) for layer in layers)
    out: tuple[Tensor, ...] = _LoraLinears.apply(x, *arguments(layers))  # type: ignore[no-untyped-call]
    return out


def is_on(layer: Any) -> bool:
    """Whether a plain LoRA layer currently applies exactly its own LoRA."""
    return not (layer.disable_adapters or layer.merged) and layer.active_adapters == ["default"]


def arguments(layers: Sequence[Any]) -> tuple[Any, ...]:
    """The scalings of plain LoRA layers, then weight, bias, A and B of each."""
    weights: list[Tensor | None] = []
    for layer in layers:
        base, a, b = layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]
        weights += [base.weight, base.bias, a.weight, b.weight]
    return tuple(layer.scaling["default"] for layer in layers), *weights


def _forward_of(layer: Any, as_peft_does: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not is_on(layer):
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
        outputs, saved_tensors = products(rows, scalings, weights)
        ctx.save_for_backward(rows, *saved_tensors)
        ctx.scalings, ctx.dtype = scalings, weights[2].dtype
        return tuple(out.view(*x.shape[:-1], -1) for out in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, *layer_tensors = ctx.saved_tensors
        above = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        of_x, of_weights = gradients_of(
            rows, ctx.scalings, layer_tensors, above, ctx.dtype, of_rows=ctx.needs_input_grad[0]
        )
        if of_x is not None:
            of_x = of_x.view(*gradients[0].shape[:-1], -1)
        return of_x, None, *of_weights


def products(
    rows: Tensor, scalings: Sequence[float], weights: Sequence[Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs [n, out] of layers for rows [n, in], and what `gradients_of` needs in addition to the rows.

    Args:
        weights: Of each layer weight, bias or None, A and B, one layer after the other.
    """
    bases, biases, near = (list(weights[i::4]) for i in range(3))
    far = [b.to(rows.dtype) for b in weights[3::4]]
    together = torch.cat(near).to(rows.dtype)  # [sum of r, in]
    inner = rows @ together.T  # [n, sum of r]
    own = torch.split(inner, [b.shape[1] for b in far], dim=1)
    outputs = [
        nn.functional.linear(rows, base, bias).addmm_(part, b.T, alpha=scaling)
        for base, bias, b, part, scaling in zip(bases, biases, far, own, scalings, strict=True)
    ]
    return outputs, [together, inner, *bases, *far]


def gradients_of(
    rows: Tensor,
    scalings: Sequence[float],
    saved_tensors: Sequence[Tensor],
    above: Sequence[Tensor],
    dtype: torch.dtype,
    *,
    of_rows: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the rows [n, in], if requested, and of each layer's weight, bias, A and B in turn.

    Args:
        above: Of what each layer made [n, out].
        dtype: That of A and B.
    """
    together, inner, *weights = saved_tensors
    bases, far = weights[: len(above)], weights[len(above) :]
    ranks = [b.shape[1] for b in far]
    # Written so that the long side of each narrow matrix is contiguous: twice to four times as fast.
    parts = [g @ b.T.contiguous().T for g, b in zip(above, far, strict=True)]
    of_inner = torch.cat([p.mul_(s) for p, s in zip(parts, scalings, strict=True)], dim=1)
    of_x = None
    if of_rows:
        of_x = above[0] @ bases[0]
        for gradient, base in zip(above[1:], bases[1:], strict=True):
            of_x.addmm_(gradient, base)
        of_x.addmm_(of_inner, together)
    of_near = torch.split((of_inner.T @ rows).to(dtype), ranks)
    of_weights: list[Tensor | None] = []
    for own, gradient, scaling, of_a in zip(
        torch.split(inner, ranks, dim=1), above, scalings, of_near, strict=True
    ):
        of_b = (own.T @ gradient).to(dtype).mul_(scaling).T
        of_weights += [None, None, of_a, of_b]
    return of_x, of_weights
