"""Refuses LoRAs that were trained on modified base weights.

PiSSA, OLoRA and similar methods initialise the LoRA with parts of the base weights and subtract these from the base
(PEFT does so when it loads such an adapter); added to the unmodified base model, the tensors give other answers.
Trainer and engines refuse them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyloop.errors import InvalidInput

KEEPS_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""Ways to begin, besides PEFT's own, that leave the base weights as they are."""


def refuse_changed_base(name: str, config: Mapping[str, Any]) -> None:
    """Raise InvalidInput when the adapter `name` with this `adapter_config.json` is for a changed base model."""
    start = config.get("init_lora_weights", True)
    if not isinstance(start, str) or start.lower() in KEEPS_THE_BASE:
        return
    raise InvalidInput(
        f"{name} was begun with init_lora_weights = {start}, which takes a part out of the base weights: on the base "
        "model as it comes it would give other answers than were learnt.",
        "Save it as a plain LoRA, with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=DIR), DIR "
        "being the adapter as it was before its first step.",
    )
