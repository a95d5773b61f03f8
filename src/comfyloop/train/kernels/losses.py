"""Log-probabilities of answer tokens only, and losses based on them.

A tensor of [batch, length, vocabulary] is never created: the head is applied only to hidden states that predict an
answer token, one chunk at a time, and each chunk's gradient is computed while its logits exist. Operations between
the two products are done block by block, so that the data stays in the CPU cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CHUNK = 256
"""Answer tokens whose logits exist at the same time: 256 x 49,152 x 2 bytes is 25 MB."""

BLOCK = 16
"""Answer tokens whose logits are looked at together, in float32: 16 x 49,152 x 4 bytes is 3 MB."""


@dataclass(frozen=True, eq=False)
class Head:
    """Computes logits from hidden states: a linear layer, and what some model families apply to its output."""

    weight: Tensor  # [V, hidden]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0  # logits are multiplied by it (Granite, Cohere), then
    softcap: float = 0.0  # squeezed into -softcap .. softcap by tanh (Gemma); 0: not

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] in float32 of hidden states [..., hidden]."""
        return self._finished(nn.functional.linear(hidden, self.weight, self.bias))

    def _finished(self, projected: Tensor) -> Tensor:
        logits = projected.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def read(self, projected: Tensor, targets: Targets) -> Reading:
        """Evaluate the linear layer's output [c, V], which is overwritten, against the next tokens."""
        logits = self._finished(projected)
        slope = self.scale * (1 - (logits / self.softcap).square()) if self.softcap else self.scale
        own, top = logits.gather(-1, targets.ids), logits.amax(-1, keepdim=True)
        weights = logits.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        log_probs, right = own - top - total.log(), own[:, :1] == top
        if targets.shares is not None:
            log_probs = (targets.shares * log_probs).sum(-1, keepdim=True)
        return Reading(log_probs[:, 0], right[:, 0], weights, total, targets, slope)


class Targets(NamedTuple):
    """The target of the next token: one token, or a distribution over several."""

    ids: Tensor  # [c, k], all different, the likeliest first
    shares: Tensor | None = None  # [c, k] float32; None: k is 1, and all of it is the one token's

    def rows(self, rows: slice) -> Targets:
        return Targets(self.ids[rows], None if self.shares is None else self.shares[rows])

    def in_blocks(self, size: int) -> list[Targets]:
        return [self.rows(slice(start, start + size)) for start in range(0, len(self.ids), size)]


class Reading(NamedTuple):
    """Log-probabilities of some tokens, and intermediate results for their gradient."""

    log_probs: Tensor  # [c] of the targets, in nats; a mean where they are several
    right: Tensor  # [c] whether no other token is likelier than the (first) target
    weights: Tensor  # [c, V] exp(logit - the greatest)
    total: Tensor  # [c, 1] their sum
    targets: Targets
    slope: Tensor | float  # of logits to the linear layer's output

    def gradient(self) -> Tensor:
        """Of -log_probs with respect to the linear layer's output, times `total`: [c, V], in the weights' memory."""
        ids, shares = self.targets
        gradient = self.weights.scatter_add_(-1, ids, -self.total if shares is None else -self.total * shares)
        return gradient if isinstance(self.slope, float) and self.slope == 1.0 else gradient.mul_(self.slope)


class _HeadLogProbs(torch.autograd.Function):
    """log softmax(head.logits(hidden))[target] of each token, and whether its target is the likeliest.

    The gradient with respect to a token's hidden state is linear in the upstream gradient, so it can be computed
    before that is known. If the head itself is trained, its logits are computed a second time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        shares: Tensor | None,
        head: Head,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        targets = Targets(ids, shares)
        needs_hidden, ctx.trains_head = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        log_probs = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        right = torch.empty(hidden.shape[0], dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            projected = nn.functional.linear(hidden[rows], weight, bias)
            log_probs[rows], right[rows], totals = _read_in_blocks(
                head, projected, targets.rows(rows), needs_hidden
            )
            if grad_hidden is not None:
                grad_hidden[rows] = (projected @ weight).div_(totals)
        ctx.head, ctx.chunk = head, chunk
        head_tensors = (hidden, weight, bias, *targets) if ctx.trains_head else (None, None, None, None, None)
        ctx.save_for_backward(grad_hidden, *head_tensors)
        ctx.mark_non_differentiable(right)
        return log_probs, right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, hidden, weight, bias, ids, shares = ctx.saved_tensors
        scale = -gradients[0]  # [A]
        above = grad_hidden * scale[:, None].to(grad_hidden.dtype) if grad_hidden is not None else None
        if not ctx.trains_head:
            return above, None, None, None, None, None, None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            targets = Targets(ids, shares).rows(rows)
            reading = ctx.head.read(nn.functional.linear(hidden[rows], weight, bias), targets)
            gradient = reading.gradient().mul_(scale[rows, None] / reading.total)
            grad_weight += (gradient.to(hidden.dtype).T @ hidden[rows]).float()
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
        return (
            above,
            grad_weight.to(weight.dtype),
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            None,
            None,
            None,
            None,
        )


def _read_in_blocks(
    head: Head, projected: Tensor, targets: Targets, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [c], whether the target is the most likely token [c], and totals [c, 1] of `Reading`.

    Args:
        projected: [c, V] what the linear layer gave; `Reading.gradient` is left in its place where that is asked
            for.
    """
    readings = []
    for block, block_targets in zip(torch.split(projected, BLOCK), targets.in_blocks(BLOCK), strict=True):
        reading = head.read(block, block_targets)
        if needs_gradient:
            block.copy_(reading.gradient())
        readings.append((reading.log_probs, reading.right, reading.total))
    log_probs, right, totals = map(torch.cat, zip(*readings, strict=True))
    return log_probs, right, totals


def answer_log_probs(
    hidden: Tensor, head: Head, labels: Tensor | Targets, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of answer tokens, through the head.

    Args:
        hidden: [A, hidden] states at the positions before each answer token.
        head: The model's output layer.
        labels: [A] the answer tokens; or what each is to be, in shares.
        chunk: Tokens whose logits exist together.

    Returns:
        [A] log-probabilities in nats (float32, with a gradient), and [A] whether each token is the model's
        first choice. Where a token is to be several in shares p, its log-probability is sum(p log q).
    """
    targets = labels if isinstance(labels, Targets) else Targets(labels[:, None])
    log_probs, right = _HeadLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, *targets, head, chunk
    )
    return log_probs, right


@torch.no_grad()
def likely_tokens(hidden: Tensor, head: Head, most: int, chunk: int = CHUNK) -> Targets:
    """The `most` most likely next tokens at states [A, hidden], with probabilities normalised to one."""
    parts = [head.logits(rows).topk(min(most, len(head.weight)), -1) for rows in torch.split(hidden, chunk)]
    logits, ids = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    return Targets(ids, torch.softmax(logits, -1))


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    tokens: tuple[Tensor, Tensor],
    *,
    loss_type: str,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Loss of preference pairs: sigmoid DPO (Rafailov et al. 2023) or IPO (Azar et al. 2023).

    Args:
        chosen, rejected: [n] log-probability of each answer under the policy, less that under the reference.
        tokens: [n] and [n], tokens of the chosen and of the rejected answers; IPO takes means over them, as
            its authors do.
        label_smoothing: Share of the pairs that are the wrong way round (conservative DPO, Mitchell 2023).

    Returns:
        [n] losses.
    """
    if loss_type == "ipo":
        return (chosen / tokens[0] - rejected / tokens[1] - 1 / (2 * beta)) ** 2
    margin = beta * (chosen - rejected)
    right_way = -nn.functional.logsigmoid(margin)
    wrong_way = -nn.functional.logsigmoid(-margin)
    return (1 - label_smoothing) * right_way + label_smoothing * wrong_way


def kto_loss(
    log_ratios: Tensor,
    wanted: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """Loss of answers that were wanted or not (KTO, Ethayarajh et al. 2024, equation 7).

    Args:
        log_ratios: [n] log-probability of each answer under the policy, less that under the reference.
        wanted: [n] bool.
        kl: Scalar, the estimate of the policy's divergence from the reference; no gradient goes through it.

    Returns:
        [n] losses.
    """
    sign = torch.where(wanted, 1.0, -1.0)
    weight = torch.where(wanted, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(sign * beta * (log_ratios - kl.detach())))
