"""Generates answers with a trained language model during training: the prompts for the image side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel

from comfyloop.errors import DataError, ModelError
from comfyloop.formats import Picture, Row, Turn, UnusableRow
from comfyloop.models import devices
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.models import describe, read_weights


class Writer:
    """A base model, with or without an adapter.

    Raises:
        ModelError: The model or the adapter cannot be read.
    """

    def __init__(self, model: str, adapter: Path | None) -> None:
        description = describe(model)
        self._encoder = description.encoder(TrainSpec(model=model, train=""))
        self._device = devices.choose()
        base = read_weights(model, description, devices.precision(self._device), None)
        if adapter is not None:
            try:
                base = PeftModel.from_pretrained(base, str(adapter))
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                raise ModelError(f"The adapter {adapter} cannot be put on {model}: {error}.") from None
        self._model = base.to(self._device).eval()

    @torch.inference_mode()
    def write(self, brief: Sequence[Turn], pictures: Sequence[Picture], most: int) -> str:
        """The greedy answer to a conversation that ends with the user's turn, at most `most` tokens long.

        Raises:
            DataError: A picture of it cannot be read.
        """
        try:
            fields = self._encoder.prompt(Row(0, "", tuple(brief), tuple(pictures)))
        except UnusableRow as error:
            raise DataError(f"A brief cannot be answered: {error}.") from None
        fields = {name: value.to(self._device) for name, value in fields.items()}
        if "pixel_values" in fields:
            fields["pixel_values"] = fields["pixel_values"].to(self._model.dtype)
        length = fields["input_ids"].shape[1]
        output = self._model.generate(**fields, max_new_tokens=most, do_sample=False)
        text: str = self._encoder.tokenizer.decode(output[0, length:], skip_special_tokens=True)
        return " ".join(text.split())
