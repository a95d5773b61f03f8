"""The next token, and what the model thought of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLogprob:
    """One token with the natural logarithm of its probability and its rank (1: the most likely)."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = field(default=())  # the most likely tokens, best first


def pick(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> int:
    """Choose a token from `logits` (vocabulary,). Temperature 0 takes the best, the first of equals."""
    if temperature <= 0:
        return int(logits.max(-1).indices)  # in bfloat16 a quarter of the time of argmax
    scores = logits.float() / temperature
    tokens = None
    if top_p < 1:
        scores, tokens = _nucleus(scores, top_p)
    noise = torch.empty_like(scores).exponential_(generator=generator)
    choice = (scores.softmax(-1) / noise).argmax()  # an exponential race: one draw from the softmax
    return int(choice if tokens is None else tokens[choice])


def _nucleus(scores: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest best tokens whose probabilities sum to at least `top_p`: scores (n,), token ids (n,)."""
    total = scores.logsumexp(-1)
    size = min(256, scores.numel())
    while True:
        best, tokens = scores.topk(size)
        mass = (best - total).exp().cumsum(-1)
        if size == scores.numel() or float(mass[-1]) >= top_p:
            keep = int((mass < top_p).sum()) + 1
            return best[:keep], tokens[:keep]
        size = min(size * 8, scores.numel())


def token_logprobs(logits: Tensor, tokens: Tensor, top: int) -> list[TokenLogprob]:
    """Log-probabilities of `tokens` (n,) under `logits` (n, vocabulary), and the `top` best of each place."""
    scores = logits.float().log_softmax(-1)
    chosen = scores.gather(-1, tokens[:, None]).squeeze(-1)
    ranks = (scores > chosen[:, None]).sum(-1) + 1
    best = scores.topk(top) if top else None
    return [
        TokenLogprob(
            token=int(tokens[i]),
            logprob=float(chosen[i]),
            rank=int(ranks[i]),
            top=()
            if best is None
            else tuple(zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True)),
        )
        for i in range(len(tokens))
    ]
