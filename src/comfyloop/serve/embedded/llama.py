"""One decode step of a Llama-shaped decoder, with a fifth of the operations of the model's own forward.

On a small model most of a step is the cost of starting operations, so this one starts few: the projections
of queries, keys and values are one product, gate and up another, and query heads that share a key head are
queries of one attention. It is used only where `LlamaStep.of` finds the layers that it knows, and only after
it has given the logits of the model's own forward on a sample.

The fused weights *are* the model's weights: the model's layers become views of them, so memory does not grow
and prefill, which goes through the model's own forward, sees the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from comfyloop.serve.embedded.kv import KvRows
from comfyloop.serve.embedded.lora import Adapter

_DECODERS = {"LlamaModel", "Qwen2Model"}
_HEADS = {
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "LlavaForConditionalGeneration",
    "FastVlmForConditionalGeneration",
}
_GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


@dataclass(frozen=True)
class _Layer:
    input_norm: Tensor
    post_norm: Tensor
    weights: dict[str, tuple[Tensor, Tensor | None]]  # by group: weight (out, in), bias (out,)


Delta = tuple[Tensor, Tensor]  # A^T (in, r) and scaled B^T (r, out), float32


class LlamaStep:
    """Call it with the tokens, positions and adapters of all rows; logits (rows, vocabulary)."""

    def __init__(self, model: Any, kv: KvRows) -> None:
        self._decoder = decoder = model.get_decoder()
        self._head, self._kv = model.get_output_embeddings(), kv
        self._prefix = next(n for n, m in model.named_modules() if m is decoder) + ".layers."
        config = decoder.config
        self._kv_heads = config.num_key_value_heads
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._size = decoder.layers[0].self_attn.head_dim
        self._eps = config.rms_norm_eps
        self._modules = [
            {g: [block.get_submodule(n) for n in names] for g, names in _GROUPS.items()}
            for block in decoder.layers
        ]
        self._layers = [
            _Layer(
                block.input_layernorm.weight,
                block.post_attention_layernorm.weight,
                {g: _fuse(m) for g, m in modules.items()},
            )
            for block, modules in zip(decoder.layers, self._modules, strict=True)
        ]
        self._deltas: dict[Adapter, list[dict[str, Delta]]] = {}

    @classmethod
    def of(cls, model: Any, kv: KvRows) -> LlamaStep | None:
        """The step for `model`, or None where it has layers of another shape."""
        decoder = model.get_decoder()
        if type(decoder).__name__ not in _DECODERS or type(model).__name__ not in _HEADS:
            return None
        targets = [name for names in _GROUPS.values() for name in names]
        linears = [block.get_submodule(n) for block in decoder.layers for n in targets]
        if any(type(m) is not nn.Linear for m in linears) or decoder.config.hidden_act != "silu":
            return None
        return cls(model, kv)

    def prepare(self, adapter: Adapter) -> bool:
        """Fuse the adapter's parts as the weights are; False when it needs the model's own layers."""
        left = set(adapter.pairs)
        layers: list[dict[str, Delta]] = []
        for number, modules in enumerate(self._modules):
            deltas = {}
            for group, names in _GROUPS.items():
                paths = [f"{self._prefix}{number}.{name}" for name in names]
                pairs = [adapter.pairs.get(path) for path in paths]
                if any(p is not None and p.magnitude is not None for p in pairs):
                    return False
                if any(p is not None for p in pairs):
                    deltas[group] = _fuse_delta(pairs, [m.out_features for m in modules[group]])
                left -= set(paths)
            layers.append(deltas)
        if left:
            return False
        self._deltas[adapter] = layers
        return True

    def forget(self, name: str) -> None:
        for adapter in [a for a in self._deltas if a.name == name]:
            del self._deltas[adapter]

    def knows(self, adapter: Adapter | None) -> bool:
        return adapter is None or adapter in self._deltas

    def __call__(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, adapters: Sequence[Adapter | None]
    ) -> Tensor:
        """
        Args:
            tokens: (rows,) the last token of each row; `KvRows.pass_` says where it goes.
            positions: (rows, 1).
            mask: additive, (rows, 1, 1, longest); None when no row is shorter than another.
            adapters: of each row.
        """
        rows, size, kv_heads, group = len(tokens), self._size, self._kv_heads, self._group
        x = self._decoder.embed_tokens(tokens)
        cos, sin = self._decoder.rotary_emb(x, positions)  # (rows, 1, head_dim)
        sin = torch.cat((-sin[..., : size // 2], sin[..., size // 2 :]), -1)
        if mask is not None:
            mask = mask.expand(-1, -1, group, -1)
        present = self._present(adapters)
        shared, width = (
            kv_heads * (group + 1),
            kv_heads * group * size,
        )  # heads that turn; width of the queries
        for number, layer in enumerate(self._layers):
            h = functional.rms_norm(x, x.shape[-1:], layer.input_norm, self._eps)
            qkv = self._linear(h, layer, "qkv", number, present)
            turned = qkv[:, : shared * size].view(rows, shared, size)
            turned = turned * cos + turned.roll(size // 2, -1) * sin
            keys = turned[:, kv_heads * group :, None]
            values = qkv[:, shared * size :].view(rows, kv_heads, 1, size)
            queries = turned[:, : kv_heads * group].view(rows, kv_heads, group, size)
            k, v = self._kv.put(number, keys, values)
            seen = functional.scaled_dot_product_attention(queries, k, v, attn_mask=mask)
            x = x + self._linear(seen.reshape(rows, width), layer, "o", number, present)
            h = functional.rms_norm(x, x.shape[-1:], layer.post_norm, self._eps)
            gate, up = self._linear(h, layer, "gate_up", number, present).chunk(2, -1)
            x = x + self._linear(functional.silu(gate) * up, layer, "down", number, present)
        return self._head(self._decoder.norm(x))  # type: ignore[no-any-return]

    def _present(
        self, adapters: Sequence[Adapter | None]
    ) -> list[tuple[list[dict[str, Delta]], Tensor | None]]:
        """Each adapter of the batch with its rows (None: all of them)."""
        present = []
        for adapter in {id(a): a for a in adapters if a is not None}.values():
            rows = [i for i, a in enumerate(adapters) if a is adapter]
            present.append(
                (self._deltas[adapter], None if len(rows) == len(adapters) else torch.tensor(rows))
            )
        return present

    def _linear(
        self,
        x: Tensor,
        layer: _Layer,
        group: str,
        number: int,
        present: list[tuple[list[dict[str, Delta]], Tensor | None]],
    ) -> Tensor:
        out = functional.linear(x, *layer.weights[group])
        for deltas, rows in present:
            delta = deltas[number].get(group)
            if delta is None:
                continue
            a, b = delta
            if rows is None:
                out = torch.addmm(out.float(), x.float() @ a, b).to(out.dtype)
            else:
                out[rows] = torch.addmm(out[rows].float(), x[rows].float() @ a, b).to(out.dtype)
        return out


def _fuse(modules: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight and bias for `modules`, whose own become views of them."""
    if len(modules) == 1:
        return modules[0].weight, modules[0].bias
    weight = torch.cat([m.weight.data for m in modules])
    bias = None if modules[0].bias is None else torch.cat([m.bias.data for m in modules])
    start = 0
    for m in modules:
        stop = start + m.out_features
        m.weight = nn.Parameter(weight[start:stop], requires_grad=False)
        if bias is not None:
            m.bias = nn.Parameter(bias[start:stop], requires_grad=False)
        start = stop
    return weight, bias


def _fuse_delta(pairs: Sequence[Any], widths: Sequence[int]) -> Delta:
    """The deltas of layers that share their input as one: A stacked, B on the diagonal."""
    there = [p for p in pairs if p is not None]
    a = torch.cat([p.a for p in there])
    b = a.new_zeros(sum(widths), len(a))
    row = column = 0
    for pair, width in zip(pairs, widths, strict=True):
        if pair is not None:
            b[row : row + width, column : column + pair.b.shape[1]] = pair.b * pair.scaling
            column += pair.b.shape[1]
        row += width
    return a.t().contiguous(), b.t().contiguous()
