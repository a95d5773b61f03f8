"""Losses over answer tokens only.

No tensor of [batch, length, vocabulary] is ever made: the head is applied to the hidden states that predict
an answer token, a chunk at a time, and each chunk's gradient is taken at once, while its logits exist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 512
"""Answer tokens whose logits exist at the same time: 512 x 49,152 x 4 bytes is 100 MB."""


class _HeadCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(hidden @ weight.T + bias)[label], and how many labels are the likeliest token."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        right = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits = nn.functional.linear(hidden[rows], weight, bias).float()  # [c, V]
            label = labels[rows, None]
            right += (logits.argmax(-1, keepdim=True) == label).sum()
            log_sum = logits.logsumexp(-1, keepdim=True)
            total += (log_sum - logits.gather(-1, label)).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            gradient = logits.sub_(log_sum).exp_()  # softmax, in the logits' own memory
            gradient.scatter_add_(-1, label, gradient.new_full((1, 1), -1.0).expand_as(label))
            lean = gradient.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = lean @ weight
            if grad_weight is not None:
                grad_weight += (lean.T @ hidden[rows]).float()
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = gradients[0]
        return (
            grad_hidden * scale.to(grad_hidden.dtype) if grad_hidden is not None else None,
            (grad_weight * scale).to(grad_hidden.dtype) if grad_weight is not None else None,
            None,
            None,
            None,
        )


def answer_cross_entropy(
    hidden: Tensor, head: nn.Linear, labels: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of answer tokens, through the head.

    Args:
        hidden: [A, hidden] states at the positions before each answer token.
        head: The model's output layer, [V, hidden].
        labels: [A] the answer tokens.
        chunk: Tokens whose logits exist together.

    Returns:
        The sum over tokens in nats (float32, a scalar with a gradient) and the count of tokens that are the
        model's first choice (int64).
    """
    total, right = _HeadCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, labels, chunk
    )
    return total, right
