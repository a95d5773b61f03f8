"""The gated MLP with frozen weights in fewer sweeps over memory, and two thirds of the memory, of autograd's record.

SwiGLU (Shazeer 2020), as Llama and its relatives compute it: ``down(silu(gate(x)) * up(x))``. Backward needs what
`gate` and `up` gave and no more; the product of the two is made again from them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from transformers.activations import SiLUActivation

PLAIN = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "SmolLM3MLP"}
"""Classes of transformers that compute just that."""


def fuse_mlp(model: nn.Module) -> int:
    """Give MLPs of those classes the pass below, where none of their weights is trained or quantised; how many."""
    plain: list[Any] = [module for module in model.modules() if _is_plain(module)]
    for mlp in plain:
        mlp.forward = _forward_of(mlp)
    return len(plain)


def _is_plain(module: Any) -> bool:
    return (
        type(module).__name__ in PLAIN
        and isinstance(module.act_fn, SiLUActivation | nn.SiLU)
        and all(type(part) is nn.Linear for part in (module.gate_proj, module.up_proj, module.down_proj))
        and not any(parameter.requires_grad for parameter in module.parameters())
    )


def _forward_of(mlp: Any) -> Any:
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(x: Tensor) -> Tensor:
        out: Tensor = _GatedMlp.apply(  # type: ignore[no-untyped-call]
            x, gate.weight, gate.bias, up.weight, up.bias, down.weight, down.bias
        )
        return out

    return forward


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
