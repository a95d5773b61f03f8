"""Keys and values: of the sequences that are being answered, and of prompt beginnings seen before."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

Chunk = list[tuple[Tensor, Tensor]]  # per layer: keys and values (kv_heads, tokens, head_dim)


@dataclass(frozen=True)
class Prefill:
    """The present forward pass fills `size` places of one row from `start`."""

    row: int
    start: int
    size: int


@dataclass(frozen=True)
class Decode:
    """The present forward pass adds one token to each of some rows that follow one another: the i-th at `places[i]`."""

    places: list[int]
    index: tuple[Tensor, Tensor]  # (row numbers, places)
    first: int = 0  # the first row's number


class KvRows:
    """Per layer one tensor of keys and one of values, (rows, kv_heads, capacity, head_dim), grown as needed.

    Rows are ragged: each has its own length, which the caller knows. What lies beyond a row's length is stale
    but finite, and is masked.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.capacity = 0
        self.pass_: Prefill | Decode = Prefill(0, 0, 0)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (*self._keys, *self._values))

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens; what is there stays."""
        if rows <= self.rows and length <= self.capacity:
            return
        self.rows = max(rows, self.rows)
        if length > self.capacity:
            self.capacity = max(256, -(-length // 256) * 256, self.capacity * 3 // 2 // 256 * 256)
        self._keys = [self._grown(t) for t in self._keys]
        self._values = [self._grown(t) for t in self._values]

    def clear(self) -> None:
        self.rows = self.capacity = 0
        self._keys, self._values = [], []

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self.rows, old.shape[1], self.capacity, old.shape[3])
        new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def put(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store what the pass computed, (rows, kv_heads, tokens, head_dim); returns all that it may see."""
        if layer == len(self._keys):
            for store, new in ((self._keys, keys), (self._values, values)):
                store.append(new.new_zeros(self.rows, new.shape[1], self.capacity, new.shape[3]))
        k, v = self._keys[layer], self._values[layer]
        now = self.pass_
        if isinstance(now, Prefill):
            stop = now.start + now.size
            k[now.row, :, now.start : stop] = keys[0]
            v[now.row, :, now.start : stop] = values[0]
            return k[now.row : now.row + 1, :, :stop], v[now.row : now.row + 1, :, :stop]
        first, longest = now.first, max(now.places) + 1
        stop = first + len(now.places)
        if len(now.places) == 1:
            k[first, :, longest - 1] = keys[0, :, 0]
            v[first, :, longest - 1] = values[0, :, 0]
        else:
            at, places = now.index
            k[at, :, places] = keys[:, :, 0]
            v[at, :, places] = values[:, :, 0]
        return k[first:stop, :, :longest], v[first:stop, :, :longest]

    def move(self, source: int, target: int, length: int) -> None:
        for t in (*self._keys, *self._values):
            t[target, :, :length] = t[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        for t in (*self._keys, *self._values):
            kept = t[one, :, :length].clone()
            t[one, :, :length] = t[other, :, :length]
            t[other, :, :length] = kept

    def copy_out(self, row: int, start: int, stop: int) -> Chunk:
        return [
            (k[row, :, start:stop].clone(), v[row, :, start:stop].clone())
            for k, v in zip(self._keys, self._values, strict=True)
        ]

    def copy_in(self, row: int, start: int, chunk: Chunk) -> None:
        for (k, v), keys, values in zip(chunk, self._keys, self._values, strict=True):
            keys[row, :, start : start + k.shape[1]] = k
            values[row, :, start : start + v.shape[1]] = v


class RowsCache(Cache):  # type: ignore[misc]
    """`KvRows` as transformers' models see it."""

    def __init__(self, rows: KvRows, layers: int) -> None:
        super().__init__(layers=[_RowsLayer(rows, i) for i in range(layers)])


class _RowsLayer(CacheLayerMixin):  # type: ignore[misc]
    is_sliding = False

    def __init__(self, rows: KvRows, index: int) -> None:
        super().__init__()
        self._rows, self._index = rows, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self._rows.put(self._index, key_states, value_states)

    def get_seq_length(self) -> int:
        now = self._rows.pass_
        return now.start if isinstance(now, Prefill) else max(now.places)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class Prefixes:
    """Chunks of prompts that were computed before, by adapter and by everything that precedes them; least
    recently used first to go. Only whole chunks that a prefill computed are kept, and a prefill always cuts
    at the same places, so an answer is the same bit for bit whether its beginning was found or computed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: OrderedDict[tuple[str, bytes], Chunk] = OrderedDict()
        self.bytes = 0

    def get(self, adapter: str, digest: bytes) -> Chunk | None:
        chunk = self._chunks.get((adapter, digest))
        if chunk is not None:
            self._chunks.move_to_end((adapter, digest))
        return chunk

    def has(self, adapter: str, digest: bytes) -> bool:
        return (adapter, digest) in self._chunks

    def put(self, adapter: str, digest: bytes, chunk: Chunk) -> None:
        size = _size(chunk)
        if size > self._limit:
            return
        self._chunks[(adapter, digest)] = chunk
        self.bytes += size
        while self.bytes > self._limit:
            _, old = self._chunks.popitem(last=False)
            self.bytes -= _size(old)

    def forget(self, adapter: str) -> None:
        for key in [k for k in self._chunks if k[0] == adapter]:
            self.bytes -= _size(self._chunks.pop(key))


def _size(chunk: Chunk) -> int:
    return sum(k.nbytes + v.nbytes for k, v in chunk)


def causal_mask(query_places: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (rows, 1, queries, longest): each query sees the places up to its own.

    Args:
        query_places: (rows, queries) the place of each query in its row.
    """
    places = torch.arange(longest, device=query_places.device)
    hidden = places[None, None, None, :] > query_places[:, None, :, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
        hidden, torch.finfo(dtype).min
    )
