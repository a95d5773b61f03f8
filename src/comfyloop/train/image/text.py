"""Captions as what the UNet attends to, the way ComfyUI encodes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comfyloop.train.image import flow
from comfyloop.train.image.cache import Cache, key, weights_key
from comfyloop.train.image.checkpoint import ImageModel, TextEncoder

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
        tokens = self._model.text_encoders[0].tokenizer(caption, add_special_tokens=False, verbose=False)
        return max(1, -(-len(tokens.input_ids) // (WINDOW - 2)))

    def of(self, caption: str) -> Conditions:
        """One caption's states. Gradients flow where there is no cache."""
        if self._cache is None:
            return self._encode(caption)

        def make() -> dict[str, Tensor]:
            with torch.no_grad():
                made = self._encode(caption)
            return {"states": made.states} | ({} if made.pooled is None else {"pooled": made.pooled})

        found = self._cache.get(key("caption", caption, self._key), make)
        return Conditions(found["states"], found.get("pooled"))

    def _encode(self, caption: str) -> Conditions:
        if self._model.is_flow:
            made = flow.encode(self._model, caption)
            return Conditions(made[0].float(), made[1].float())
        encoders = self._model.text_encoders
        rows = self.windows(caption)
        states, pooled = [], None
        for encoder in encoders:
            out = encoder.model(tokens(encoder, caption, rows), output_hidden_states=len(encoders) > 1)
            if len(encoders) == 1:
                hidden = out.last_hidden_state
            else:
                hidden = out.hidden_states[-2]  # SDXL takes the layer before the last, unnormalised
                pooled = getattr(out, "text_embeds", pooled)
            states.append(hidden.flatten(0, 1)[None])
        first = None if pooled is None else pooled[:1].float()  # of the first window, as ComfyUI takes it
        return Conditions(torch.cat(states, -1).float(), first)


def tokens(encoder: TextEncoder, caption: str, rows: int) -> Tensor:
    """Token ids [rows, 77]; padding is the encoder's own."""
    tokenizer: Any = encoder.tokenizer
    ids = tokenizer(caption, add_special_tokens=False, verbose=False).input_ids
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    size = WINDOW - 2
    out = []
    for row in range(rows):
        part = ids[row * size : (row + 1) * size]
        line = [start, *part, end]
        out.append(line + [pad] * (WINDOW - len(line)))
    return torch.tensor(out, device=encoder.model.device)
