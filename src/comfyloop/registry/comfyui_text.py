"""The text adapter for ComfyUI itself: a LoRA of a text encoder, for its node Generate Text (TextGenerate).

`text_encoders.transformer.…` means the same layer whatever the encoder is called that a workflow loads (qwen3_4b,
qwen3vl_8b, …): ComfyUI maps it so since its pull request 12852 of March 2026.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from comfyloop.errors import Conflict, InvalidInput
from comfyloop.registry import merge
from comfyloop.registry.archive import disk_error

PREFIX = "text_encoders.transformer.model."
ENCODERS = frozenset({"qwen3", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma2", "gemma3"})
"""Kinds of language models that ComfyUI has as text encoders and generates text with."""


def write(adapter: Path, kind: str, target: Path) -> list[str]:
    """Write the new file `target`.

    Args:
        adapter: A PEFT directory.
        kind: The base model's model_type.

    Returns:
        What is left out, in sentences.

    Raises:
        InvalidInput: ComfyUI has no such text encoder, or cannot apply the adapter.
        Conflict: `target` is there already.
        StorageError: The disk refuses.
    """
    if kind.removesuffix("_text") not in ENCODERS:
        raise InvalidInput(
            f"ComfyUI generates text with {', '.join(sorted(ENCODERS))}, and the base model is of the kind {kind!r}.",
            "Serve it with comfyloop serve and use the node ComfyLoop Generate, or --to gguf.",
        )
    if target.exists():
        raise Conflict(f"{target} is there already.", "Give another name.")
    layers = merge.layers_of(adapter)
    inner = {name: layer for name, layer in layers.items() if name.startswith("layers.")}
    if not inner:
        raise InvalidInput("The adapter changes no layer of the language model.")
    tensors: dict[str, merge.Floats] = {}
    for name, layer in inner.items():
        key = f"{PREFIX}{name}"
        tensors[f"{key}.lora_down.weight"] = np.ascontiguousarray(layer.down)
        tensors[f"{key}.lora_up.weight"] = np.ascontiguousarray(layer.up)
        tensors[f"{key}.alpha"] = np.array(layer.scale * layer.rank, np.float32)
        if layer.magnitude is not None:
            tensors[f"{key}.dora_scale"] = np.ascontiguousarray(layer.magnitude[:, None])
    try:
        save_file(tensors, target, metadata={"format": "pt"})
    except OSError as error:
        raise disk_error(target, error) from error
    if outside := len(layers) - len(inner):
        return [f"{outside} layers of the adapter that lie outside the language model's own are left out."]
    return []
