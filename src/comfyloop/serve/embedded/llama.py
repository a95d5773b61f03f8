"""One pass of a Llama-shaped decoder, with a fifth of the operations of the model's own forward.

On a small model most of a pass is the cost of starting operations, so this one starts few: the projections
of queries, keys and values are one product, gate and up another, and query heads that share a key head are
queries of one attention. It is used only where `LlamaStep.of` finds the layers that it knows, and only after
it has given the logits of the model's own forward on a sample.

The fused weights *are* the model's weights: the model's layers become views of them, so that its own forward, which
takes what this one does not know, sees the same numbers. What is packed (see `packed.py`) is a copy of them.

The adapters of a batch are applied at once: their A stand side by side, and what a row's own adapter has not made is
put to zero before it meets their B.

Rows that are to have the same bits whatever their neighbours are take `steady` steps: every product has the same
shape, however many rows there are, and nothing that is summed hangs on another row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
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


READ_ROWS = 256
"""Tokens of texts that are read together without being kept."""


@dataclass(frozen=True)
class TextPass:
    """
    Attributes:
        x: (n, hidden) what its tokens are embedded as.
        positions: (n,).
        mask: additive, (1, 1, n, n).
        first_asked: the first token whose logits are asked for.
    """

    x: Tensor
    positions: Tensor
    mask: Tensor
    first_asked: int
    adapter: Adapter | None


@dataclass(frozen=True)
class _Layer:
    input_norm: Tensor
    post_norm: Tensor
    linears: dict[str, Linear]  # by group


Delta = tuple[Tensor, Tensor]  # A^T (in, r) and scaled B^T (r, out)
DeltasOf = Mapping[Adapter, Sequence[Mapping[str, Delta]]]  # by layer and group


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Of a layer's number, its queries (n, heads, head_dim), and keys and values (n, kv_heads, head_dim): what the heads
have seen, (n, ...) with heads * head_dim numbers for each of the n tokens."""

Term = tuple[Tensor, Tensor, Tensor | None]
"""What adapters add: their A side by side, their B above one another, and (rows, r) or (rows, 1) zeros and ones for
what of it is each row's own (None: all)."""

Applied = list[dict[str, list[Term]]]
"""What is added, by layer and group."""

STEADY_ROWS = 8
"""Rows of every product of a steady step: most of a step is reading weights, so these cost hardly more than one."""


class LlamaStep:
    """A decode step, when called with the tokens, positions and adapters of all rows: logits (rows, vocabulary).
    Prompts are filled by `fill`."""

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
        self._dtype = head.weight.dtype
        # in float32 for the few rows of a step; where many rows are read, widening them costs more than the products
        self._deltas: dict[Adapter, list[dict[str, Delta]]] = {}
        self._narrow: dict[Adapter, list[dict[str, Delta]]] = {}
        self._applied: tuple[bool, Sequence[Adapter | None], Applied] = (False, [], [])

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
        self._narrow[adapter] = [
            {group: (a.to(self._dtype), b.to(self._dtype)) for group, (a, b) in deltas.items()}
            for deltas in layers
        ]
        return True

    def forget(self, name: str) -> None:
        for adapter in [a for a in self._deltas if a.name == name]:
            del self._deltas[adapter], self._narrow[adapter]
        self._applied = (False, [], [])

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
        group = self._group
        if mask is not None:
            mask = mask.expand(-1, -1, group, -1)

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            k, v = self._kv.put(number, keys[:, :, None], values[:, :, None])
            queries = queries.view(len(queries), -1, group, self._size)
            return functional.scaled_dot_product_attention(queries, k, v, attn_mask=mask)

        x = self._decoder.embed_tokens(tokens)
        return self._head(self._through(x, positions, self._apply(adapters), attend))

    def steady(
        self, tokens: Tensor, positions: Tensor, lengths: Sequence[int], adapters: Sequence[Adapter | None]
    ) -> Tensor:
        """A step of at most `STEADY_ROWS` rows, of which each has the same bits as alone.

        Args:
            tokens, positions, adapters: as for a step.
            lengths: tokens that each row has with this one.
        """
        rows, group, size = len(tokens), self._group, self._size
        tokens, positions = _padded(tokens, STEADY_ROWS), _padded(positions, STEADY_ROWS)

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            k, v = self._kv.put(number, keys[:rows, :, None], values[:rows, :, None])
            queries = queries.view(len(queries), -1, group, size)
            seen = torch.zeros_like(queries)
            for i, length in enumerate(lengths):
                seen[i : i + 1] = functional.scaled_dot_product_attention(
                    queries[i : i + 1], k[i : i + 1, :, :length], v[i : i + 1, :, :length]
                )
            return seen

        x = self._decoder.embed_tokens(tokens)
        return self._head(self._through(x, positions, self._apply(adapters, steady=True), attend))[:rows]

    def read(self, texts: Sequence[TextPass]) -> list[Tensor]:
        """Texts of together at most `READ_ROWS` tokens, in one pass that keeps nothing; a text's logits are the same
        bits whatever others are read beside it.

        Returns:
            Of each text the logits of the tokens that are asked for (n, vocabulary).
        """
        group = self._group
        lengths = [len(text.x) for text in texts]
        spans = [slice(stop - n, stop) for stop, n in zip(accumulate(lengths), lengths, strict=True)]

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            seen = torch.zeros_like(queries)
            for text, span in zip(texts, spans, strict=True):
                q, k, v = (t[span].transpose(0, 1)[None] for t in (queries, keys, values))
                k, v = (t.repeat_interleave(group, 1) for t in (k, v))
                seen[span] = functional.scaled_dot_product_attention(q, k, v, attn_mask=text.mask)[
                    0
                ].transpose(0, 1)
            return seen

        x = _padded(torch.cat([text.x for text in texts]), READ_ROWS)
        positions = _padded(torch.cat([text.positions for text in texts]), READ_ROWS)
        adapters = [text.adapter for text in texts for _ in range(len(text.x))]
        x = self._through(x, positions[:, None], self._one_by_one(self._narrow, adapters, READ_ROWS), attend)
        asked = torch.cat([x[span][text.first_asked :] for text, span in zip(texts, spans, strict=True)])
        counts = [n - text.first_asked for text, n in zip(texts, lengths, strict=True)]
        logits = self._head(_padded(asked, READ_ROWS))
        starts = accumulate(counts, initial=0)
        return [logits[start : start + count] for start, count in zip(starts, counts, strict=False)]

    def fill(
        self, x: Tensor, positions: Tensor, mask: Tensor, adapter: Adapter | None, all_logits: bool
    ) -> Tensor:
        """Take a piece of one row's prompt.

        Args:
            x: (tokens, hidden) what its tokens are embedded as; `KvRows.pass_` says where they go.
            positions: (tokens, 1).
            mask: additive, (1, 1, tokens, longest).

        Returns:
            Logits of all its tokens (tokens, vocabulary), or of the last one alone (1, vocabulary).
        """
        tokens, group, size = len(x), self._group, self._size
        mask = mask.repeat(1, 1, group, 1)

        def attend(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            k, v = self._kv.put(number, keys.transpose(0, 1)[None], values.transpose(0, 1)[None])
            queries = queries.view(tokens, -1, group, size).permute(1, 2, 0, 3)
            queries = queries.reshape(1, -1, group * tokens, size)
            seen = functional.scaled_dot_product_attention(queries, k, v, attn_mask=mask)
            return seen.view(-1, group, tokens, size).permute(2, 0, 1, 3)

        x = self._through(x, positions, self._stack(self._narrow, [adapter]), attend)
        return self._head(x if all_logits else x[-1:])

    def _through(self, x: Tensor, positions: Tensor, applied: Applied, attend: Attend) -> Tensor:
        """All layers, and the last norm, for n tokens (n, hidden), whoever's they are."""
        size, kv_heads = self._size, self._kv_heads
        heads = kv_heads * self._group
        turning = heads + kv_heads
        cos, sin = self._decoder.rotary_emb(x, positions)  # (n, 1, head_dim)
        sin = torch.cat((-sin[..., : size // 2], sin[..., size // 2 :]), -1)
        for number, layer in enumerate(self._layers):
            h = functional.rms_norm(x, x.shape[-1:], layer.input_norm, self._eps)
            qkv = self._linear(h, layer, "qkv", applied[number]).view(len(x), -1, size)
            turned = qkv[:, :turning]
            turned = turned * cos + turned.roll(size // 2, -1) * sin
            seen = attend(number, turned[:, :heads], turned[:, heads:], qkv[:, turning:])
            x = x + self._linear(seen.reshape(len(x), -1), layer, "o", applied[number])
            h = functional.rms_norm(x, x.shape[-1:], layer.post_norm, self._eps)
            gate, up = self._linear(h, layer, "gate_up", applied[number]).chunk(2, -1)
            x = x + self._linear(functional.silu(gate) * up, layer, "down", applied[number])
        norm: Tensor = self._decoder.norm(x)
        return norm

    def _apply(self, adapters: Sequence[Adapter | None], *, steady: bool = False) -> Applied:
        """Made when the batch changes, which is seldom, and kept for its steps."""
        was_steady, before, applied = self._applied
        if (
            steady == was_steady
            and len(adapters) == len(before)
            and all(a is b for a, b in zip(adapters, before, strict=True))
        ):
            return applied
        if steady:
            applied = self._one_by_one(self._deltas, adapters, STEADY_ROWS)
        else:
            applied = self._stack(self._deltas, adapters)
        self._applied = (steady, adapters, applied)
        return applied

    def _stack(self, deltas_of: DeltasOf, adapters: Sequence[Adapter | None]) -> Applied:
        present = list({id(a): a for a in adapters if a is not None}.values())
        shared = len(present) > 1 or None in adapters
        applied: Applied = []
        for number in range(len(self._layers)):
            groups = {}
            for group in _GROUPS:
                there = [a for a in present if group in deltas_of[a][number]]
                if not there:
                    continue
                deltas = [deltas_of[a][number][group] for a in there]
                if len(deltas) > 1:
                    a, b = torch.cat([a for a, _ in deltas], 1), torch.cat([b for _, b in deltas])
                else:
                    a, b = deltas[0]
                own = None
                if shared:
                    ranks = torch.tensor([len(b) for _, b in deltas])
                    whose = torch.tensor([[row is adapter for adapter in there] for row in adapters])
                    own = whose.to(a.dtype).repeat_interleave(ranks, 1).to(a.device)
                groups[group] = [(a, b, own)]
            applied.append(groups)
        return applied

    def _one_by_one(self, deltas_of: DeltasOf, adapters: Sequence[Adapter | None], padded: int) -> Applied:
        """Each adapter by itself, so that what one adds has no part in another's sums."""
        present = list({id(a): a for a in adapters if a is not None}.values())
        whose = {}
        for adapter in present:
            rows = [float(a is adapter) for a in adapters] + [0.0] * (padded - len(adapters))
            whose[adapter] = torch.tensor(rows)[:, None]
        return [
            {
                group: [
                    (*deltas[group], whose[adapter].to(deltas[group][0]))
                    for adapter in present
                    if group in (deltas := deltas_of[adapter][number])
                ]
                for group in _GROUPS
            }
            for number in range(len(self._layers))
        ]

    def _linear(self, x: Tensor, layer: _Layer, group: str, applied: dict[str, list[Term]]) -> Tensor:
        out = layer.linears[group](x)
        if not applied.get(group):
            return out
        if applied[group][0][0].dtype != torch.float32:
            for a, b, own in applied[group]:
                inner = x @ a
                out = torch.addmm(out, inner if own is None else inner * own, b)
            return out
        wide = out.float()
        for a, b, own in applied[group]:
            inner = narrowed(x, a)
            if own is not None:
                inner *= own
            wide = torch.addmm(wide, inner, b)
        return wide.to(out.dtype)


def narrowed(x: Tensor, a: Tensor) -> Tensor:
    """x (rows, in) in float32 times a (in, rank).

    The sums of a narrow product of few rows would be split among the threads, and the rounding hang on how many there
    are just then. Row pairs as a batch of products are not split.
    """
    x = x.float()
    if len(x) == 1:
        return (x.expand(2, -1) @ a)[:1]
    if len(x) > STEADY_ROWS or len(x) % 2:
        return x @ a
    pairs = x.view(len(x) // 2, 2, -1)
    return torch.bmm(pairs, a.expand(len(pairs), *a.shape)).view(len(x), -1)


def _padded(rows: Tensor, number: int) -> Tensor:
    """That many rows; the first again and again."""
    return torch.cat((rows, rows[:1].expand(number - len(rows), *rows.shape[1:])))


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
