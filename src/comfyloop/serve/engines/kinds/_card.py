"""What share of a card an engine needs. By itself vLLM takes nine tenths: ComfyUI and training would find it full."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

from comfyloop.models.memory import GIB, MIB, REQUEST_TOKENS

BESIDE = 2 * GIB
"""For activations, CUDA's context and adapters."""
MOST = 0.9
"""What vLLM takes by itself."""


def share(model: str, requests: int) -> float | None:
    """Of the first NVIDIA card, what a model in a directory needs with so many requests at a time, at most `MOST`;
    None where card, weights or shape cannot be told."""
    try:
        total = _card()
        needed = weights(Path(model)) + requests * REQUEST_TOKENS * cached(Path(model)) + BESIDE
    except (OSError, ValueError, TypeError, KeyError, subprocess.SubprocessError):
        return None
    return min(MOST, math.ceil(100 * needed / total) / 100)


def weights(model: Path) -> int:
    """Bytes on the disk, as they are loaded."""
    for kind in ("*.safetensors", "*.bin"):
        if found := sum(file.stat().st_size for file in model.glob(kind)):
            return found
    raise FileNotFoundError(model)


def cached(model: Path) -> int:
    """Bytes of keys and values that a token leaves behind, in half precision."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text("utf-8"))
    text = config.get("text_config", config)
    heads = int(text["num_attention_heads"])
    width = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
    return 2 * int(text["num_hidden_layers"]) * int(text.get("num_key_value_heads") or heads) * width * 2


def _card() -> int:
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=20, check=True).stdout
    return int(told.split()[0]) * MIB
