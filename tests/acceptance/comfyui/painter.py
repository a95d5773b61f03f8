"""Nodes for the tests: a picture made from a prompt without any model, so that a run takes milliseconds."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import torch


class Painter:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "prompt": ("STRING", {"multiline": True, "default": "a red fox"}),
                "size": ("INT", {"default": 64, "min": 8, "max": 512}),
                "count": ("INT", {"default": 1, "min": 1, "max": 16}),
                "api_key": ("STRING", {"default": ""}),
            }
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "paint"
    CATEGORY = "tests"

    def paint(self, prompt: str, size: int, count: int, api_key: str) -> tuple[Any]:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "big")
        chance = torch.Generator().manual_seed(seed)
        small = torch.rand(count, 3, 4, 4, generator=chance)
        return (torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear").movedim(1, -1),)


class Slow:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0})}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "wait"
    CATEGORY = "tests"

    def wait(self, images: Any, seconds: float) -> tuple[Any]:
        time.sleep(seconds)
        return (images,)


class Wildcards:
    """Writes a text by chance, as people's wildcard nodes do: the workflow does not tell it."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"template": ("STRING", {"multiline": True}), "seed": ("INT", {"default": 0})}}

    RETURN_TYPES = ("STRING",)
    FUNCTION = "write"
    CATEGORY = "tests"

    def write(self, template: str, seed: int) -> tuple[str]:
        return (template.replace("{colour}", ("red", "blue", "green")[seed % 3]),)


class Sizes:
    """The same pictures in two sizes, as a list."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "give"
    CATEGORY = "tests"

    def give(self, images: Any) -> tuple[list[Any]]:
        return ([images, images[:, ::2], images[:, :, ::2]],)


NODE_CLASS_MAPPINGS = {
    "TestPainter": Painter,
    "TestSlow": Slow,
    "TestWildcards": Wildcards,
    "TestSizes": Sizes,
}
