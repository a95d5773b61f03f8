"""One decode step of a Llama-shaped decoder, with a fifth of the operations of the model's own forward.

On a small model most of a step is the cost of starting operations, so this one starts few: the projections
of queries, keys and values are one product, gate and up another, and query heads that share a key head are
queries of one attention. It is used only where `LlamaStep.of` finds the layers that it knows, and only after
it has given the logits of the model's own forward on a sample.

The fused weights *are* the model's weights: the model's layers become views of them, and prefill, which goes
through the model's own forward, sees the same numbers. What is packed (see `packed.py`) is a copy of them.

The adapters of a batch are applied at once: their A stand side by side, and what a row's own adapter has not made is
put to zero before it meets their B.
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
from comfyloop.serve.embedded.packed import Linear, Packer

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
    linears: dict[str, Linear]  # by group


Delta = tuple[Tensor, Tensor]  # A^T (in, r) and scaled B^T (r, out), float32


Applied = list[dict[str, tuple[Tensor, Tensor, Tensor | None]]]
"""What the adapters of a batch add, by layer and group: their A side by side, their B above one another, and (rows,
r) zeros and ones for what of it is each row's own (None: all)."""


class LlamaStep:
    """Call it with the tokens, positions and adapters of all rows; logits (rows, vocabulary)."""

    def __init__(self, model: Any, kv: KvRows, pack: Packer) -> None:
        self._decoder = decoder = model.get_decoder()
        self._kv = kv
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
                {g: pack(*_fuse(m)) for g, m in modules.items()},
            )
            for block, modules in zip(decoder.layers, self._modules, strict=True)
        ]
        head = model.get_output_embeddings()
        self._head = pack(head.weight, head.bias)
        self._deltas: dict[Adapter, list[dict[str, Delta]]] = {}
        self._applied: tuple[Sequence[Adapter | None], Applied] = ([], [])

    @classmethod
    def of(cls, model: Any, kv: KvRows, pack: Packer) -> LlamaStep | None:
        """The step for `model`, or None where it has layers of another shape."""
        decoder = model.get_decoder()
        if type(decoder).__name__ not in _DECODERS or type(model).__name__ not in _HEADS:
            return None
        targets = [name for names in _GROUPS.values() for name in names]
        linears = [block.get_submodule(n) for block in decoder.layers for n in targets]
        linears.append(model.get_output_embeddings())
        if any(type(m) is not nn.Linear for m in linears) or decoder.config.hidden_act != "silu":
            return None
        return cls(model, kv, pack)

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
        self._applied = ([], [])

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
        applied = self._apply(adapters)
        shared, width = (
            kv_heads * (group + 1),
            kv_heads * group * size,
        )  # heads that turn; width of the queries
        for number, layer in enumerate(self._layers):
            h = functional.rms_norm(x, x.shape[-1:], layer.input_norm, self._eps)
            qkv = self._linear(h, layer, "qkv", applied[number])
            turned = qkv[:, : shared * size].view(rows, shared, size)
            turned = turned * cos + turned.roll(size // 2, -1) * sin
            keys = turned[:, kv_heads * group :, None]
            values = qkv[:, shared * size :].view(rows, kv_heads, 1, size)
            queries = turned[:, : kv_heads * group].view(rows, kv_heads, group, size)
            k, v = self._kv.put(number, keys, values)
            seen = functional.scaled_dot_product_attention(queries, k, v, attn_mask=mask)
            x = x + self._linear(seen.reshape(rows, width), layer, "o", applied[number])
            h = functional.rms_norm(x, x.shape[-1:], layer.post_norm, self._eps)
            gate, up = self._linear(h, layer, "gate_up", applied[number]).chunk(2, -1)
            x = x + self._linear(functional.silu(gate) * up, layer, "down", applied[number])
        return self._head(self._decoder.norm(x))

    def _apply(self, adapters: Sequence[Adapter | None]) -> Applied:
        """Made when the batch changes, which is seldom, and kept for its steps."""
        if len(adapters) != len(self._applied[0]) or any(
            a is not b for a, b in zip(adapters, self._applied[0], strict=True)
        ):
            self._applied = (adapters, self._stack(adapters))
        return self._applied[1]

    def _stack(self, adapters: Sequence[Adapter | None]) -> Applied:
        present = list({id(a): a for a in adapters if a is not None}.values())
        shared = len(present) > 1 or None in adapters
        applied: Applied = []
        for number in range(len(self._layers)):
            groups = {}
            for group in _GROUPS:
                there = [a for a in present if group in self._deltas[a][number]]
                if not there:
                    continue
                deltas = [self._deltas[a][number][group] for a in there]
                if len(deltas) > 1:
                    a, b = torch.cat([a for a, _ in deltas], 1), torch.cat([b for _, b in deltas])
                else:
                    a, b = deltas[0]
                own = None
                if shared:
                    ranks = torch.tensor([len(b) for _, b in deltas])
                    whose = torch.tensor([[row is adapter for adapter in there] for row in adapters])
                    own = whose.to(a.dtype).repeat_interleave(ranks, 1).to(a.device)
                groups[group] = (a, b, own)
            applied.append(groups)
        return applied

    def _linear(
        self, x: Tensor, layer: _Layer, group: str, applied: dict[str, tuple[Tensor, Tensor, Tensor | None]]
    ) -> Tensor:
        out = layer.linears[group](x)
        if group not in applied:
            return out
        a, b, own = applied[group]
        inner = x.float() @ a
        if own is not None:
            inner *= own
        return torch.addmm(out.float(), inner, b).to(out.dtype)


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
