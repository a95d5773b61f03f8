"""The learning rate where nobody names one: the recipe's own, and less for wider models.

The recipes' rates were measured on a language model 576 wide. Under Adam each weight moves by about the rate whatever
its gradient, so what a layer gives moves by the rate times its width: it is divided by that (Yang et al. 2022,
2203.03466). Imports no torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from comfyloop.recipes import Recipe

MEASURED_AT = 576
"""The hidden size of SmolLM2-135M."""

UNKNOWN = 4096
"""Where a model is not on this machine yet: that of 7B and 8B models, so that the rate is rather too low."""


def own_rate(recipe: Recipe, model: str) -> float:
    """The peak rate for a LoRA on a model, given as a directory or by its hub id; narrower ones get no more."""
    if recipe.side == "image":
        return recipe.learning_rate
    width = hidden_size(model) or UNKNOWN
    return float(f"{recipe.learning_rate * min(1.0, MEASURED_AT / width):.2g}")


def hidden_size(model: str) -> int | None:
    """Of the language model, as config.json says it; None where that is not on this machine or does not say it."""
    try:
        config = json.loads(_config(model).read_text("utf-8"))
        part = next((config[name] for name in ("text_config", "llm_config") if name in config), config)
        return next(int(part[name]) for name in ("hidden_size", "d_model", "n_embd") if name in part)
    except (OSError, ValueError, TypeError, StopIteration):
        return None


def _config(model: str) -> Path:
    if not Path(model).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError:
            raise FileNotFoundError(model) from None
        kept = try_to_load_from_cache(model, "config.json")
        return Path(kept) if isinstance(kept, str) else Path(model, "config.json")
    return Path(model, "config.json")
