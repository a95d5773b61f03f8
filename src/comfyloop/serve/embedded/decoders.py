"""Which decoder a model takes."""

from __future__ import annotations

from comfyloop.serve.embedded.batch import BatchDecoder
from comfyloop.serve.embedded.loading import LoadedModel
from comfyloop.serve.embedded.lora import LoraRows
from comfyloop.serve.embedded.sequence import Decoder, shares_a_cache
from comfyloop.serve.embedded.solo import SoloDecoder
from comfyloop.serve.embedded.vision import Vision


def make_decoder(
    loaded: LoadedModel, lora: LoraRows, prefix_bytes: int, image_bytes: int, packed_bytes: int = 1 << 30
) -> Decoder:
    vision = Vision(loaded.model, image_bytes) if loaded.processor is not None else None
    if shares_a_cache(loaded.model):
        return BatchDecoder(loaded, lora, vision, prefix_bytes, packed_bytes)
    return SoloDecoder(loaded, lora, vision)
