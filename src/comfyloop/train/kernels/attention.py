"""Self-attention with rotary positions in fewer passes over memory than transformers' own forward pass.

Queries, keys and values are computed by one autograd function; another one applies the rotation to both halves
without copying, negating and joining them; packed attention (see `packing`) does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AttentionInterface

from comfyloop.train.kernels import lora, packing

PLAIN = {
    "LlamaAttention",
    "MistralAttention",
    "Qwen2Attention",
    "Qwen3Attention",
    "Qwen2VLAttention",
    "Qwen2_5_VLAttention",
    "Qwen3VLTextAttention",
}
"""Classes of transformers that project, norm heads or not, rotate whole heads in two halves, attend, project."""


def fuse_attention(peft: PeftModel) -> int:
    """Use the pass below in layers of those classes whose Q, K and V have a plain LoRA; returns their number."""
    plain: list[Any] = [
        module
        for module in peft.modules()
        if type(module).__name__ in PLAIN
        and all(lora.is_plain(part) for part in (module.q_proj, module.k_proj, module.v_proj))
    ]
    for module in plain:
        module.forward = _forward_of(module, module.forward)
    return len(plain)


def _forward_of(module: Any, as_transformers_does: Callable[..., Any]) -> Callable[..., Any]:
    projections = (module.q_proj, module.k_proj, module.v_proj)
    q_norm, k_norm = (getattr(module, name, None) for name in ("q_norm", "k_norm"))
    window = getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        spans: Any = kwargs.get("spans")
        cos, sin = kwargs.get("position_embeddings") or (None, None)
        whole_heads = cos is not None and cos.shape[-1] == module.head_dim
        if args or spans is None or not whole_heads or module.config._attn_implementation != packing.NAME:
            return as_transformers_does(hidden_states, *args, **kwargs)
        q, k, v = (
            x.view(*x.shape[:-1], -1, module.head_dim) for x in lora.outputs(projections, hidden_states)
        )  # [1, L, heads, head_dim]
        if q_norm is not None and k_norm is not None:
            q, k = q_norm(q), k_norm(k)
        q, k = _Rotate.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
        out, weights = AttentionInterface()[packing.NAME](
            module,
            *(x.transpose(1, 2) for x in (q, k, v)),
            None,
            dropout=module.attention_dropout if module.training else 0.0,
            scaling=module.scaling,
            sliding_window=window,
            spans=spans,
        )
        return module.o_proj(out.flatten(2)), weights

    return forward


class _Rotate(torch.autograd.Function):
    """Rotary positions (Su et al. 2021): x * cos + (-x2, x1) * sin, with x1 and x2 the halves of each head.

    q, k [1, L, heads, head_dim]; cos, sin [1, L, head_dim], without a gradient.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cosines, sines = (x.unsqueeze(2).chunk(2, -1) for x in (cos, sin))  # twice [1, L, 1, head_dim / 2]
        ctx.turns = (cosines, sines)
        return _turned(q, cosines, sines, -1), _turned(k, cosines, sines, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosines, sines = ctx.turns
        of_q, of_k = (_turned(gradient, cosines, sines[::-1], 1) for gradient in gradients)
        return of_q, of_k, None, None


def _turned(x: Tensor, cosines: Sequence[Tensor], sines: Sequence[Tensor], sign: int) -> Tensor:
    """Halves (x1 * cos1 + sign * x2 * sin1, x2 * cos2 - sign * x1 * sin2)."""
    out = torch.empty_like(x)
    (first, second), (to_first, to_second) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cosines[0], out=to_first).addcmul_(second, sines[0], value=sign)
    torch.mul(second, cosines[1], out=to_second).addcmul_(first, sines[1], value=-sign)
    return out
