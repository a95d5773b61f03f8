"""The default learning rate: the recipe's own, reduced for wider models.

The recipes' rates were measured on a language model 576 wide. Under Adam each weight changes by about the rate
whatever its gradient, so a layer's output changes by the rate times its width: the rate is divided by that (Yang et
al. 2022, 2203.03466). Imports no torch.
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


GOING_ON = 0.5
"""Of the rate, where a LoRA is gone on from. Turn after turn at the whole of it a brand's sixth had lost 5% of the
likelihood of general answers; at half of it from the first turn on nothing was lost, but the first learned less."""


def own_rate(recipe: Recipe, model: str, *, going_on: bool = False) -> float:
    """The peak rate for a LoRA, a fresh one or one to go on from.

    Args:
        model: A directory, or a hub id. Models narrower than that of the measurement get no more.
    """
    if recipe.side == "image":
        return recipe.learning_rate
    width = hidden_size(model) or UNKNOWN
    rate = recipe.learning_rate * min(1.0, MEASURED_AT / width) * (GOING_ON if going_on else 1.0)
    return float(f"{rate:.2g}")


def hidden_size(model: str) -> int | None:
    """The hidden size of the language model from its config.json; None if that is not on this machine or lacks
    it."""
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
        cached_path = try_to_load_from_cache(model, "config.json")
        return Path(cached_path) if isinstance(cached_path, str) else Path(model, "config.json")
    return Path(model, "config.json")
