"""RMSNorm with a frozen weight, with fewer passes over memory than autograd needs.

Zhang and Sennrich 2019, as Llama and its relatives compute it: statistics in float32, the normed input rounded
to the model's precision before the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PLAIN = {
    "LlamaRMSNorm",
    "MistralRMSNorm",
    "Qwen2RMSNorm",
    "Qwen2_5_VLRMSNorm",
    "Qwen3RMSNorm",
    "SmolLM3RMSNorm",
}
"""Classes of transformers that compute ``weight * (x / rms(x))``; others add to the weight, or to nothing."""


def fuse_rms_norm(model: nn.Module) -> int:
    """Use the pass below in frozen norms of those classes; returns their number."""
    norms: list[Any] = [
        module
        for module in model.modules()
        if type(module).__name__ in PLAIN and not module.weight.requires_grad
    ]
    for norm in norms:
        norm.forward = _forward_of(norm)
    return len(norms)


def _forward_of(norm: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        out: Tensor = _RmsNorm.apply(x, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
        return out

    return forward


class _RmsNorm(torch.autograd.Function):
    """[..., hidden] -> [..., hidden]; no gradient for the weight [hidden]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        # Widened first: a product of two precisions takes twice to eight times as long as one of float32.
        wide = x.to(torch.float32, copy=True)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()  # [..., 1] float32
        ctx.save_for_backward(x, scale, weight)
        return wide.mul_(scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight = ctx.saved_tensors
        of_normed, wide = (gradients[0] * weight).float(), x.float()
        along = (of_normed * wide).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(-x.shape[-1])
        return of_normed.mul_(scale).addcmul_(wide, along).to(x.dtype), None, None
