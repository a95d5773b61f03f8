"""Describes a text model for llama.cpp: its architecture, the fields of its GGUF file, and the names of its
tensors.

Names come from the `gguf` package's own mapping. What a vision-language model has beside its language model is none of
it: llama.cpp takes that from a second file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map
from numpy.typing import NDArray

from comfyloop.errors import InvalidInput
from comfyloop.models.adapter_check import Shape, tail

Floats = NDArray[np.float32]

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "qwen2_vl": MODEL_ARCH.QWEN2VL,
    "qwen2_5_vl": MODEL_ARCH.QWEN2VL,
    "qwen3_vl": MODEL_ARCH.QWEN3VL,
}
"""By the model_type of the language model."""
ROPE_FACTORS = "rope_freqs.weight"
_HEADS = 32
"""Where config.json leaves it out, as transformers has it for all of these."""


class Family:
    """One base model as llama.cpp knows it.

    Attributes:
        name: Of its architecture there.
        vocabulary: Rows of its embedding.
        notes: What differs there, in sentences.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Shape]) -> None:
        """Args:
        shapes: Of all tensors, by their names.

        Raises:
            InvalidInput: llama.cpp has no such model, or this one has something that is not converted.
        """
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        text = {**config, **(config.get("text_config") or {})}
        kind = str(text.get("model_type", "")).removesuffix("_text")
        if kind not in ARCHITECTURES:
            raise InvalidInput(
                f"The language model of {folder.name} is of the kind {kind!r}, which is not written as GGUF.",
                f"These are: {', '.join(ARCHITECTURES)}. For others: --to merged, then llama.cpp's own converter.",
            )
        if (activation := text.get("hidden_act", "silu")) != "silu":
            raise InvalidInput(f"{folder.name} uses {activation}, where llama.cpp's {kind} has silu.")
        self._text, self._deep = (
            text,
            len((config.get("vision_config") or {}).get("deepstack_visual_indexes", ())),
        )
        self.architecture = ARCHITECTURES[kind]
        self.name = MODEL_ARCH_NAMES[self.architecture]
        inner = {where: shape for name, shape in shapes.items() if (where := _inner(name))}
        layers = [int(key.split(".")[1]) for key in inner if key.startswith("layers.")]
        self._blocks = max(layers, default=-1) + 1
        try:
            self.vocabulary, self._width = inner["embed_tokens.weight"]
            self._feed_forward = inner["layers.0.mlp.gate_proj.weight"][0]
            query, key = (inner[f"layers.0.self_attn.{part}_proj.weight"][0] for part in "qk")
        except KeyError as error:
            raise InvalidInput(f"{folder.name} has no tensor {error}, which a {kind} has.") from None
        self._heads = int(text.get("num_attention_heads") or _HEADS)
        self._head_size = int(text.get("head_dim") or query // self._heads)
        self._key_heads = key // self._head_size
        self._names = get_tensor_name_map(self.architecture, self._blocks)
        self._rope = _rope(folder.name, text)
        self.notes: list[str] = []
        if len(inner) < len(shapes):
            self.notes.append(
                "What sees pictures is left out: llama.cpp answers with the language model alone."
            )
        if text.get("sliding_window") and text.get("use_sliding_window", kind == "mistral"):
            self.notes.append(
                f"{folder.name} attends to the last {text['sliding_window']} tokens, in llama.cpp to all of them."
            )

    def called(self, tensor: str) -> str:
        """llama.cpp's name for a tensor of the base model; empty: it is no part of the language model.

        Raises:
            InvalidInput: It is, and llama.cpp has none such.
        """
        key = _inner(tensor)
        if not key or key.endswith("rotary_emb.inv_freq"):
            return ""
        gguf_name = self._names.get_name(f"model.{key}", (".weight", ".bias")) or self._names.get_name(
            key, (".weight", ".bias")
        )
        if gguf_name is None:
            raise InvalidInput(f"llama.cpp's {self.name} has no place for the tensor {tensor}.")
        return str(gguf_name)

    def laid_out(self, tensor: str, rows: Floats) -> Floats:
        """The rows of a tensor, or of a LoRA's B for it, as llama.cpp expects them: its Llama turns neighbouring pairs
        of a head's numbers where transformers turns the first half against the second."""
        key = _inner(tensor)
        if self.architecture != MODEL_ARCH.LLAMA or ".self_attn." not in key:
            return rows
        heads = {"q_proj": self._heads, "k_proj": self._key_heads}.get(key.split(".")[3])
        if heads is None:
            return rows
        halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))

    def rope_factors(self) -> Floats | None:
        """What llama.cpp divides the frequencies of positions by, where they are stretched as Llama 3.1's are."""
        rope = self._rope
        if rope["rope_type"] != "llama3":
            return None
        count = np.arange(0, self._head_size, 2, dtype=np.float64) / self._head_size
        lengths = 2 * math.pi * float(rope["rope_theta"]) ** count
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        original, factor = float(rope["original_max_position_embeddings"]), float(rope["factor"])
        smooth = np.clip((original / lengths - low) / (high - low), 0, 1)
        return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)

    def describe(self, writer: GGUFWriter) -> None:
        """Write the fields that llama.cpp builds the model from."""
        text, rope = self._text, self._rope
        writer.add_block_count(self._blocks)
        writer.add_context_length(int(text.get("max_position_embeddings") or 2048))
        writer.add_embedding_length(self._width)
        writer.add_feed_forward_length(self._feed_forward)
        writer.add_head_count(self._heads)
        writer.add_head_count_kv(self._key_heads)
        writer.add_key_length(self._head_size)
        writer.add_value_length(self._head_size)
        writer.add_layer_norm_rms_eps(float(text.get("rms_norm_eps", 1e-6)))
        writer.add_vocab_size(self.vocabulary)
        writer.add_rope_dimension_count(self._head_size)
        writer.add_rope_freq_base(float(rope["rope_theta"]))
        if sections := rope.get("mrope_section"):
            writer.add_rope_dimension_sections([*sections, *[0] * (4 - len(sections))])
        if self.architecture == MODEL_ARCH.QWEN3VL:
            writer.add_num_deepstack_layers(self._deep)
        if rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))


def _inner(tensor: str) -> str:
    """A tensor's name within the language model; empty: it is outside."""
    stem, _, part = tensor.rpartition(".")
    if part not in ("weight", "bias", "inv_freq"):
        return ""
    layer = tail(stem)
    return "" if layer.startswith("outside:") else f"{layer}.{part}"


def _rope(name: str, text: Mapping[str, Any]) -> dict[str, Any]:
    """How positions are told, as transformers 5 writes it, older configurations too."""
    rope = {"rope_theta": text.get("rope_theta", 10_000.0), **(text.get("rope_scaling") or {})}
    rope |= text.get("rope_parameters") or {}
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    rope["rope_type"] = kind = "default" if kind == "mrope" else kind
    if kind not in ("default", "linear", "llama3"):
        raise InvalidInput(
            f"{name} scales positions by {kind}, which is not written as GGUF.",
            "Use --to merged, then llama.cpp's own converter.",
        )
    return rope
