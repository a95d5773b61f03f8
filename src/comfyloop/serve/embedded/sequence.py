"""A sequence that is decoded, and what a decoder does with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from comfyloop.serve.embedded.continuations import Pass
from comfyloop.serve.embedded.lora import Adapter
from comfyloop.serve.embedded.prompts import Prompt
from comfyloop.serve.embedded.vision import Embedded, Vision

CHUNK = 64  # tokens of a prompt that are filled in one pass: what a running answer waits for at most


@dataclass(eq=False)
class DecodeSequence:
    """One prompt and its answer, as the decoder holds it."""

    prompt: Prompt
    adapter: Adapter | None
    room: int  # tokens of prompt and answer together
    all_logits: bool = False  # every token of the prompt is scored, so nothing is taken from earlier prompts
    only_scored: bool = False  # no answer is decoded: continuations are read behind the prompt
    alone: bool = False  # the same bits as alone: how many are answered at a time changes no rounding
    answer: list[int] = field(default_factory=list)
    filled: int = 0  # tokens whose keys and values are there
    reused: int = 0  # of those, how many were computed for an earlier prompt
    row: int = -1
    embedded: Embedded | None = None
    digests: list[bytes] = field(default_factory=list)  # of the prompt up to the end of each whole chunk
    cache: Any = None  # its own, where the model cannot share one
    branch: Any = None  # a copy of that with the continuation that is being read

    @property
    def adapter_name(self) -> str:
        return "" if self.adapter is None else self.adapter.name

    @property
    def shift(self) -> int:
        return 0 if self.embedded is None else self.embedded.shift

    @property
    def ready(self) -> bool:
        """Whether it may be decoded."""
        return self.is_filled and not self.only_scored

    @property
    def is_filled(self) -> bool:
        return self.filled >= len(self.prompt.ids)

    @property
    def has_row(self) -> bool:
        return self.row >= 0


class Decoder(Protocol):
    """Owned by the model thread. Rows are sequences between `admit` and `release`."""

    def admit(self, sequence: DecodeSequence) -> None: ...

    def prefill(self, sequence: DecodeSequence) -> Tensor:
        """Fill the next piece of the prompt; logits (n, vocabulary) of its last n tokens."""

    def step(self, sequences: Sequence[DecodeSequence]) -> Tensor:
        """One more token for each filled sequence; logits (rows, vocabulary)."""

    def read_on(self, sequence: DecodeSequence, further: Pass) -> Tensor:
        """Tokens behind a filled prompt that is only scored; their logits (tokens, vocabulary)."""

    def reads_whole(self, sequence: DecodeSequence, further: int) -> bool:
        """Whether `read_whole` takes a prompt that is only scored, with so many tokens behind it; no row is needed."""

    def read_whole(self, texts: Sequence[tuple[DecodeSequence, Pass]]) -> list[Tensor]:
        """Prompts and what is scored behind them, at once. Of each the logits of the prompt's last token and of those
        behind it (1 + tokens, vocabulary)."""

    def release(self, sequence: DecodeSequence) -> None: ...

    def prepare(self, adapter: Adapter) -> None:
        """Do in another thread what the adapter needs before its first row."""

    def forget(self, adapter: str) -> None: ...

    @property
    def bytes(self) -> int: ...


def shares_a_cache(model: Any) -> bool:
    """Whether every layer attends to everything before it, so that ragged rows can share one cache."""
    cache = DynamicCache(config=model.config)
    return len(cache.layers) > 0 and all(type(layer) is DynamicLayer for layer in cache.layers)


def embed_prompt(vision: Vision | None, sequence: DecodeSequence, device: torch.device) -> Embedded | None:
    prompt = sequence.prompt
    if not prompt.images:
        return None
    assert vision is not None  # prompts with images are refused where there is no processor
    inputs = {k: v.to(device) for k, v in prompt.inputs.items()}
    inputs = {k: v.to(vision.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    return vision.embed(
        torch.tensor([prompt.ids], device=device), inputs, prompt.images, sequence.adapter_name
    )
