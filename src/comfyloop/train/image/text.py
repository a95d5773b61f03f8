"""Encodes captions as ComfyUI does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comfyloop.stable_diffusion.emphasis import pieces_of, windows_of
from comfyloop.train.image import flow
from comfyloop.train.image.cache import Cache, key, weights_key
from comfyloop.train.image.model import ImageModel, TextEncoder

WINDOW = 77
"""Tokens that a CLIP encoder reads at once, its start and end among them."""


@dataclass(frozen=True)
class Conditions:
    """Text states [B, tokens, width] and, for SDXL, pooled states [B, width]."""

    states: Tensor
    pooled: Tensor | None

    @classmethod
    def stack(cls, conditions: list[Conditions]) -> Conditions:
        pooled = [c.pooled for c in conditions if c.pooled is not None]
        return cls(torch.cat([c.states for c in conditions]), torch.cat(pooled) if pooled else None)


class Captions:
    """Encodes captions; with `cache` each one once. A long caption is read in windows of 75 tokens."""

    def __init__(self, model: ImageModel, cache: Cache | None) -> None:
        self._model = model
        self._cache = cache
        self._key = weights_key(e.model for e in model.text_encoders) if cache is not None else ""

    def windows(self, caption: str) -> int:
        if self._model.is_flow:  # T5 reads more at once, and what is too long for it is cut
            return 1
        return len(weighted_tokens(self._model.text_encoders[0], caption))

    def of(self, caption: str) -> Conditions:
        """One caption's states. Gradients flow where there is no cache."""
        if self._cache is None:
            return self._encode(caption)

        def make() -> dict[str, Tensor]:
            with torch.no_grad():
                conditions = self._encode(caption)
            return {"states": conditions.states} | (
                {} if conditions.pooled is None else {"pooled": conditions.pooled}
            )

        plain = pieces_of(caption) == [(caption, 1.0)]
        tensors = self._cache.get(key("caption" if plain else "emphasis", caption, self._key), make)
        return Conditions(tensors["states"], tensors.get("pooled"))

    def _encode(self, caption: str) -> Conditions:
        if self._model.is_flow:
            # the pipeline of these models knows no weights, so the words are given without them
            text_states = flow.encode(self._model, "".join(text for text, _ in pieces_of(caption)))
            return Conditions(text_states[0].float(), text_states[1].float())
        encoders = self._model.text_encoders
        states, pooled = [], None
        for encoder in encoders:
            windows = weighted_tokens(encoder, caption)
            out = encoder.model(tokens(encoder, windows), output_hidden_states=len(encoders) > 1)
            if len(encoders) == 1:
                hidden = out.last_hidden_state
            else:
                hidden = out.hidden_states[-2]  # SDXL takes the layer before the last, unnormalised
                pooled = getattr(out, "text_embeds", pooled)
            states.append(_emphasised(hidden, windows).flatten(0, 1)[None])
        first = None if pooled is None else pooled[:1].float()  # of the first window, as ComfyUI takes it
        return Conditions(torch.cat(states, -1).float(), first)


def weighted_tokens(encoder: TextEncoder, caption: str) -> list[list[tuple[int, float]]]:
    """A caption's token ids with their weights, in windows of 75; one empty window for no caption."""
    groups = []
    for text, weight in pieces_of(caption):
        ids = encoder.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        groups.append([(token, weight) for token in ids])
    return windows_of(groups, WINDOW - 2)


def tokens(encoder: TextEncoder, windows: Sequence[Sequence[tuple[int, float]]]) -> Tensor:
    """Token ids [windows, 77], with an additional row for the empty text if there are weights; padding is the
    encoder's own."""
    tokenizer: Any = encoder.tokenizer
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    out = []
    for window in (*windows, ()) if _has_weights(windows) else windows:
        line = [start, *(token for token, _ in window), end]
        out.append(line + [pad] * (WINDOW - len(line)))
    return torch.tensor(out, device=encoder.model.device)


def _has_weights(windows: Sequence[Sequence[tuple[int, float]]]) -> bool:
    return any(weight != 1.0 for window in windows for _, weight in window)


def _emphasised(hidden: Tensor, windows: Sequence[Sequence[tuple[int, float]]]) -> Tensor:
    """States [windows, 77, width]: each token's difference from the empty text's state at its position, times its
    weight."""
    if not _has_weights(windows):
        return hidden
    states, empty = hidden[:-1], hidden[-1:]
    weights = torch.ones(states.shape[:2])
    for row, window in enumerate(windows):
        weights[row, 1 : 1 + len(window)] = torch.tensor([weight for _, weight in window])
    return empty + (states - empty) * weights[..., None].to(states)
