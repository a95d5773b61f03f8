"""Scores how well a picture fits a text and how similar two pictures are. The model for this is chosen here.

CLIP where one is set: cosines of its features, as in CLIPScore (Hessel et al. 2021). Else the project's own
vision-language model, before any training: how likely it finds the text after the picture, and cosines of what its
tower and projector make of pictures. Numbers of the two are not to be compared with each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from comfyloop.errors import ModelError
from comfyloop.formats import IMAGE_TAG, Picture, Row, Turn
from comfyloop.models import devices
from comfyloop.train.image.rows import decode, picture_at
from comfyloop.train.image.weights import complain, first_line
from comfyloop.train.specs.judge import JudgeSpec
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.answers import read_answers
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import Loaded, describe, read_weights

QUESTION = "What does this picture show?"


class ImageScorer(Protocol):
    @property
    def name(self) -> str:
        """The name of the model, for reports."""

    def score(self, picture: Picture, text: str) -> float:
        """How well a picture fits a text; higher is better."""

    def embed(self, picture: Picture) -> Tensor:
        """A vector of length 1: the cosine of two says how alike pictures are."""


def image_scorer_of(spec: JudgeSpec) -> ImageScorer | None:
    """None where there is neither CLIP nor a model that sees.

    Raises:
        ModelError: The one that is set cannot be read.
    """
    if spec.clip is not None:
        return Clip(spec.clip)
    if spec.viewer is not None and describe(spec.viewer).sees_images:
        return ModelViewer(spec.viewer, spec.dtype)
    return None


class Clip:
    """A CLIP-like model (CLIP, SigLIP, Chinese-CLIP) as transformers loads it."""

    def __init__(self, place: str) -> None:
        self.name = f"CLIP ({Path(place).name})"
        try:
            model, loading_info = AutoModel.from_pretrained(place, output_loading_info=True)
            self._model: Any = model.eval()
            self._processor: Any = AutoProcessor.from_pretrained(place)
            complain("model", loading_info["missing_keys"], (), loading_info["mismatched_keys"])
            if not hasattr(self._model, "get_image_features"):
                raise ValueError(f"{type(self._model).__name__} compares no pictures with texts")
        except Exception as error:  # readers raise whatever the damage leads them to
            raise ModelError(
                f"{place} cannot be used as CLIP: {first_line(error)}.",
                "Set gate_clip to a CLIP's directory, or to nothing.",
            ) from None

    def score(self, picture: Picture, text: str) -> float:
        return float(self.embed(picture) @ self.embed_text(text))

    def embed(self, picture: Picture) -> Tensor:
        return self.embed_image(decode(picture_at(picture)))

    @torch.no_grad()
    def embed_image(self, image: Image.Image) -> Tensor:
        pixels = self._processor(images=image, return_tensors="pt")
        return _unit(self._model.get_image_features(**pixels))

    @torch.no_grad()
    def embed_text(self, text: str) -> Tensor:
        tokens = self._processor(text=[text], return_tensors="pt", truncation=True)
        return _unit(self._model.get_text_features(**tokens))


class ModelViewer:
    """A vision-language model that is asked what it sees."""

    name = "the project's base model"

    def __init__(self, model: str, dtype: str) -> None:
        description = describe(model)
        self._encoder = description.encoder(TrainSpec(model=model, train=""))
        device = devices.choose()
        chosen = devices.precision(device, dtype)
        whole = read_weights(model, description, chosen, None).to(device).eval()
        attention = whole.config.get_text_config()._attn_implementation
        self._model = Loaded(whole, None, description.processor, device, chosen, attention)
        self._model.go_alone("pictures are looked at one by one")
        self._features = ImageFeatures(self._model)

    @torch.no_grad()
    def score(self, picture: Picture, text: str) -> float:
        """Mean log-probability of the text's tokens after the picture, in nats."""
        example = self._encoder.encode(self._row(picture, text))
        return float(read_answers(self._model, self._features, [example]).log_probs.mean())

    @torch.no_grad()
    def embed(self, picture: Picture) -> Tensor:
        """The mean over the picture's tokens."""
        features = self._features.of(self._encoder.encode(self._row(picture, "-")))
        pooled = [value for name, value in features.items() if name.startswith("pooler_output")]
        return _unit(torch.cat([value.flatten(0, -2) for value in pooled]).mean(0))

    def _row(self, picture: Picture, answer: str) -> Row:
        turns = (Turn("user", f"{IMAGE_TAG}{QUESTION}"), Turn("assistant", answer))
        return Row(0, picture.name, turns, (picture,))


def _unit(features: Any) -> Tensor:
    """On the CPU, of length 1. Newer versions of transformers wrap the vector in a record."""
    vector = features if isinstance(features, Tensor) else features.pooler_output
    flat: Tensor = torch.nn.functional.normalize(vector.float().cpu().flatten(), dim=0)
    return flat
