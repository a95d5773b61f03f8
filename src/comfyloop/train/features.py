"""What a frozen vision tower and projector make of an image, computed once and kept for the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from comfyloop.errors import ModelError
from comfyloop.train.encode import Example

# Fields of the tower's output that language models read; the rest (hidden states of every layer) is let go.
_READ = ("pooler_output", "deepstack_features")


class ImageFeatures:
    """Features of each example's images, by example. Kept in memory: some hundred tokens an image."""

    def __init__(self, model: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.model = model
        self.dtype = dtype
        self.device = device
        self._kept: dict[int, Any] = {}  # by the identity of `Example.images`, which several may share

    @torch.no_grad()
    def of(self, example: Example) -> Any:
        """The model's own output record for the images of one example, less what nobody reads."""
        key = id(example.images)
        if key not in self._kept:
            inputs = {
                k: v.to(self.device, self.dtype if v.is_floating_point() else None)
                for k, v in example.images.items()
            }
            output = self.model.get_image_features(**inputs, return_dict=True)
            if output.get("pooler_output") is None:
                raise ModelError(f"{type(self.model).__name__} gives no image features that can be kept.")
            self._kept[key] = type(output)(**{k: v for k, v in output.items() if k in _READ})
        return self._kept[key]

    def packed(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Model inputs that put these features in the place of the images' tokens; empty without images."""
        seen = [self.of(example) for example in examples if example.images]
        if not seen:
            return {}
        joined = {name: _joined([output[name] for output in seen]) for name in seen[0]}
        return {"mm_encoder_outputs": {"image": type(seen[0])(**joined)}}


def _joined(values: list[Any]) -> Any:
    """Features of several samples as one: lists and tuples put end to end, tensors along their first axis."""
    if isinstance(values[0], Tensor):
        return torch.cat(values, dim=0)
    if isinstance(values[0], tuple | list):
        return [item for value in values for item in value]
    raise ModelError(f"Image features of type {type(values[0]).__name__} cannot be put together.")
