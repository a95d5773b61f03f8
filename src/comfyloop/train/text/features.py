"""Image features of a frozen vision tower and projector, computed once and cached.

Cached in memory as far as there is room, and on disk across runs if reading is faster than computing
(`feature_cache.py`). A tower or projector that is trained runs every time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from comfyloop.errors import DataError, ModelError
from comfyloop.train.data.examples import Example
from comfyloop.train.text.feature_cache import FeatureCache
from comfyloop.train.text.models import Loaded

MEMORY = 2**30
"""Bytes of features that stay in memory: some thousand images of a small model, some hundred of a large one."""
_WORTH_READING = 0.5
"""The disk cache is given up when reading an image's features takes more than this share of computing them."""

Features = dict[str, Tensor]
"""By path in the model's output record: `pooler_output`, or `pooler_output/0` of a list, one entry an image;
`deepstack_features/2/0` the first image's for the third layer (Qwen3-VL)."""


class ImageFeatures:
    """Features of samples' images.

    Args:
        model: Its tower and projector are used as they are now.
        cache: Where features outlive the run; None: nowhere.
        memory: Bytes to keep in memory.
    """

    def __init__(self, model: Loaded, cache: FeatureCache | None = None, memory: int = MEMORY) -> None:
        self.model = model
        self.cache = cache
        self.computed = self.read = 0  # samples whose images went through the tower, or came from the disk
        self._room = memory
        self._in_memory: OrderedDict[bytes, Features] = OrderedDict()
        self._timed = False
        self.frozen = not any(p.requires_grad for _, p in self.parameters())

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights that features depend on: all except the language model's and its head's."""
        whole = self.model.whole
        language = {
            id(p) for m in (whole.get_decoder(), whole.get_output_embeddings()) for p in m.parameters()
        }
        return ((n, p) for n, p in whole.named_parameters() if id(p) not in language)

    def setting(self) -> str:
        """A description of everything else that features depend on, besides weights and pixels."""
        whole = self.model.whole
        attention = [
            getattr(getattr(whole.config, part, None), "_attn_implementation", "")
            for part in whole.config.sub_configs
        ]
        return " ".join(
            map(
                str,
                (
                    type(whole).__name__,
                    self.model.dtype,
                    self.model.device.type,
                    attention,
                    torch.__version__,
                    transformers.__version__,
                ),
            )
        )

    def of(self, example: Example) -> Features:
        """Features of all images of one sample.

        Raises:
            DataError: They are not as many as the image tokens in its text; the sentence names the sample.
            ModelError: The model has no image features that could be kept.
        """
        assert example.pixels is not None
        if not self.frozen:
            return self._compute(example)
        key = example.pixels.digest
        if key in self._in_memory:
            self._in_memory.move_to_end(key)
            return self._in_memory[key]
        features = self._from_disk(key) or self._computed_once(key, example)
        self._keep(key, features)
        return features

    def packed(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Model inputs that put these features in the place of the images' tokens; empty without images."""
        features_of: dict[bytes, Features] = {}  # two answers to one conversation share its images
        for example in examples:
            if example.pixels is not None and example.pixels.digest not in features_of:
                features_of[example.pixels.digest] = self.of(example)
        records = [_record(features_of[e.pixels.digest]) for e in examples if e.pixels is not None]
        if not records:
            return {}
        outputs = {name: _joined(name, [record[name] for record in records]) for name in records[0]}
        return {"mm_encoder_outputs": {"image": SimpleNamespace(**outputs)}}

    def _compute(self, example: Example) -> Features:
        inputs = {
            k: v.to(self.model.device, self.model.dtype if v.is_floating_point() else None)
            for k, v in example.seen().items()
        }
        whole = self.model.whole
        if not hasattr(whole, "get_image_features"):
            raise ModelError(
                f"{type(whole).__name__} does not say what its vision tower makes of an image, so it cannot be "
                "trained on images here.",
                "Use a model such as Qwen-VL, LLaVA, SmolVLM or InternVL, or train on text alone.",
            )
        output = whole.get_image_features(**inputs, return_dict=True)
        outputs = {name: output.get(name) for name in ("pooler_output", "deepstack_features")}
        features = dict(_flat({name: value for name, value in outputs.items() if value is not None}))
        rows = sum(v.numel() // v.shape[-1] for k, v in features.items() if k.startswith("pooler_output"))
        if rows != example.image_tokens:
            raise DataError(
                f"Line {example.line} (sample {example.id}) has {example.image_tokens} image tokens in its text "
                f"and {rows} image features: the model's processor and its weights do not belong together.",
                "Use the processor files that came with the model.",
            )
        self.computed += 1
        return features

    def _computed_once(self, key: bytes, example: Example) -> Features:
        began = time.perf_counter()
        with torch.no_grad():
            features = {name: value.contiguous() for name, value in self._compute(example).items()}
        seconds = time.perf_counter() - began
        if self.cache is not None:
            self.cache.put(key, features)
            if not self._timed and self.computed > 1:  # the first one also pays for warming up
                self._timed = True
                began = time.perf_counter()
                self.cache.get(key)
                if time.perf_counter() - began > _WORTH_READING * seconds:
                    self.cache = None
        return features

    def _from_disk(self, key: bytes) -> Features | None:
        tensors = self.cache.get(key) if self.cache is not None else None
        if tensors is None:
            return None
        self.read += 1
        return {name: value.to(self.model.device) for name, value in tensors.items()}

    def _keep(self, key: bytes, features: Features) -> None:
        size = sum(v.nbytes for v in features.values())
        self._in_memory[key] = features
        self._room -= size
        while self._room < 0 and self._in_memory:
            self._room += sum(v.nbytes for v in self._in_memory.popitem(last=False)[1].values())


def _flat(value: Any, path: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(path, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [pair for name, part in items for pair in _flat(part, f"{path}/{name}" if path else str(name))]


def _record(features: Features) -> dict[str, Any]:
    """Rebuild the model's own output record: tensors, lists of tensors, lists of lists."""
    record: dict[str, Any] = {}
    for path, tensor in features.items():
        name, *indices = path.split("/")
        if not indices:
            record[name] = tensor
            continue
        place = record.setdefault(name, [])
        for _ in indices[1:]:
            layer = int(indices[0])
            while len(place) <= layer:
                place.append([])
            place = place[layer]
        place.append(tensor)
    return record


def _joined(name: str, values: list[Any]) -> Any:
    """Features of several samples as one: images end to end, for each layer where there are several."""
    if name == "deepstack_features":
        return [_joined("", list(layer)) for layer in zip(*values, strict=True)]
    if isinstance(values[0], Tensor):
        return torch.cat(values, dim=0)
    return [image for value in values for image in value]
