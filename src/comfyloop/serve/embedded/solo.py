"""The decoder of models whose layers keep a window or a state: sequences one by one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from comfyloop.serve.embedded.continuations import Pass
from comfyloop.serve.embedded.loading import LoadedModel
from comfyloop.serve.embedded.lora import Adapter, LoraRows
from comfyloop.serve.embedded.sequence import CHUNK, DecodeSequence, embed_prompt
from comfyloop.serve.embedded.vision import Vision


class SoloDecoder:
    """For models whose layers keep a window or a state: each sequence has the model's own kind of cache, and
    a step takes them one by one."""

    def __init__(self, loaded: LoadedModel, lora: LoraRows, vision: Vision | None) -> None:
        self._model, self._lora, self.vision, self._device = loaded.model, lora, vision, loaded.device

    @property
    def bytes(self) -> int:
        return self.vision.bytes if self.vision else 0

    def admit(self, sequence: DecodeSequence) -> None:
        self._lora.select([sequence.adapter])
        sequence.cache = DynamicCache(config=self._model.config)
        sequence.embedded = embed_prompt(self.vision, sequence, self._device)

    def prefill(self, sequence: DecodeSequence) -> Tensor:
        self._lora.select([sequence.adapter])
        start, total = sequence.filled, len(sequence.prompt.ids)
        embedded = sequence.embedded
        stop = min(start + CHUNK, total) if embedded is None else total
        ids = torch.tensor([sequence.prompt.ids[start:stop]], device=self._device)
        inputs: dict[str, Any] = {"input_ids": ids}
        if embedded is not None and embedded.whole is not None:
            inputs.update(embedded.whole)
        elif embedded is not None:
            inputs = {"inputs_embeds": embedded.embeds, "position_ids": embedded.positions}
        else:
            inputs["position_ids"] = torch.arange(start, stop, device=self._device)[None]
        logits = self._model(
            **inputs,
            past_key_values=sequence.cache,
            use_cache=True,
            logits_to_keep=0 if sequence.all_logits else 1,
        ).logits
        sequence.filled = stop
        return logits[0]  # type: ignore[no-any-return]

    def step(self, sequences: Sequence[DecodeSequence]) -> Tensor:
        logits = []
        for sequence in sequences:
            self._lora.select([sequence.adapter])
            output = self._model(
                input_ids=torch.tensor([[sequence.answer[-1]]], device=self._device),
                position_ids=torch.tensor([[sequence.filled + sequence.shift]], device=self._device),
                past_key_values=sequence.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            sequence.filled += 1
            logits.append(output.logits[0, -1])
        return torch.stack(logits)

    def read_on(self, sequence: DecodeSequence, further: Pass) -> Tensor:
        self._lora.select([sequence.adapter])
        logits, first = [], 0
        for part in further.parts:
            if part.start == 0:
                sequence.branch = copy.deepcopy(sequence.cache)
            length = part.stop - part.start
            place = len(sequence.prompt.ids) + sequence.shift + part.start
            output = self._model(
                input_ids=torch.tensor([further.tokens[first : first + length]], device=self._device),
                position_ids=torch.arange(place, place + length, device=self._device)[None],
                past_key_values=sequence.branch,
                use_cache=True,
            )
            logits.append(output.logits[0])
            first += length
        return torch.cat(logits)

    def reads_whole(self, sequence: DecodeSequence, further: int) -> bool:
        return False

    def read_whole(self, texts: Sequence[tuple[DecodeSequence, Pass]]) -> list[Tensor]:
        raise NotImplementedError

    def release(self, sequence: DecodeSequence) -> None:
        sequence.cache = sequence.branch = None

    def prepare(self, adapter: Adapter) -> None: ...

    def forget(self, adapter: str) -> None:
        if self.vision is not None:
            self.vision.forget(adapter)
