"""Positions beyond those that a model was trained on, scaled in the same way by trainer and engines.

`linear` divides every position by the factor (Chen et al. 2023, arXiv:2306.15595), `dynamic` raises the base as
a sequence grows (NTK-aware scaling), `yarn` divides low frequencies only (Peng et al. 2023, arXiv:2309.00071).
The model's own rotary embedding does the arithmetic; here its configuration is told to. Nothing here imports
torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from comfyloop.errors import InvalidInput, ModelError
from comfyloop.records import Record

POSITIONS_FILE = "positions.json"
"""In an adapter's directory: the scaling that it was trained with. PEFT and other readers pass it over."""


class RopeScaling(Record):
    """How positions are scaled; the names are transformers'."""

    rope_type: Literal["linear", "dynamic", "yarn"]
    factor: float = Field(gt=1, description="How many times as many positions as the model was trained on.")

    @model_validator(mode="before")
    @classmethod
    def _in_short(cls, value: Any) -> Any:
        """`yarn:4` will do where a record is wanted."""
        return cls.parse(value) if isinstance(value, str) else value

    @classmethod
    def parse(cls, text: str) -> RopeScaling | None:
        """`yarn:4` as a record, an empty text or `none` as None. Raises InvalidInput."""
        if text in {"", "none"}:
            return None
        kind, _, factor = text.partition(":")
        try:
            return cls.model_validate({"rope_type": kind, "factor": float(factor)})
        except ValueError:
            raise InvalidInput(
                f"rope_scaling = {text!r} is not a scaling of positions.",
                "Write a kind and a factor above 1, such as linear:2, dynamic:2 or yarn:4.",
            ) from None


def scale(config: Any, scaling: RopeScaling | None) -> None:
    """Tell a transformers configuration to scale positions. M-RoPE sections and the base stay as they are.

    Raises:
        ModelError: The model has no rotary positions, or they are scaled already, in another way.
    """
    if scaling is None:
        return
    text = config.get_text_config()
    present = getattr(text, "rope_parameters", None)
    if not present:
        raise ModelError(
            f"Models of type {text.model_type} have no rotary positions to scale.", "Leave rope_scaling out."
        )
    layers = {k: v for k, v in present.items() if isinstance(v, dict)}  # where kinds of layers differ
    if layers and "full_attention" not in layers:
        raise ModelError(
            f"Models of type {text.model_type} give {', '.join(layers)} layers positions of their own, which "
            "rope_scaling does not scale.",
            "Leave rope_scaling out.",
        )
    own = layers.get("full_attention", present)  # layers that look back a window only need no more positions
    have = own.get("rope_type", "default")
    if have == scaling.rope_type and own.get("factor") == scaling.factor:
        return
    if have not in {"default", "mrope"}:
        raise ModelError(
            f"The model's positions are scaled already (rope_type = {have}, factor = {own.get('factor')}), "
            f"and rope_scaling asks for {scaling.rope_type} by {scaling.factor:g}.",
            "Leave rope_scaling out, or use the model without its own scaling.",
        )
    new = {**own, "rope_type": scaling.rope_type, "factor": scaling.factor}
    new.pop("type", None)
    if scaling.rope_type == "yarn":
        new["original_max_position_embeddings"] = text.max_position_embeddings
    text.rope_parameters = {**present, "full_attention": new} if layers else new


def max_positions(config: Any) -> int:
    """How many positions a model has, scaled ones included; a huge number where it sets no bound."""
    text = config.get_text_config()
    own = getattr(text, "max_position_embeddings", None)
    if not own:
        return 2**31
    present = getattr(text, "rope_parameters", None) or {}
    rope = present.get("full_attention", present)
    if rope.get("rope_type") not in {"linear", "dynamic", "yarn"}:
        return int(own)
    original = rope.get("original_max_position_embeddings") or own
    return max(int(own), int(original * rope["factor"]))


def write_positions(adapter: Path, scaling: RopeScaling | None) -> None:
    """Store with an adapter the position scaling that it was trained with."""
    content = {"rope_scaling": scaling.model_dump() if scaling else None}
    (adapter / POSITIONS_FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def refuse_other_positions(name: str, adapter: Path, running: RopeScaling | None) -> None:
    """Refuse to serve an adapter with another position scaling than it was trained with.

    Args:
        running: The scaling that the engine was started with.

    Raises:
        InvalidInput: The adapter was trained with another. One that says nothing of it came from elsewhere,
            and is taken.
    """
    path = adapter / POSITIONS_FILE
    if not path.is_file():
        return
    try:
        scaling = json.loads(path.read_text("utf-8"))["rope_scaling"]
        trained = None if scaling is None else RopeScaling.model_validate(scaling)
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(
            f"{path} does not say how positions are scaled.", "Train the adapter again."
        ) from None
    if trained != running:
        raise InvalidInput(
            f"Adapter {name} was trained with rope_scaling = {_written(trained)}, and the base model runs with "
            f"{_written(running)}: it would read other positions than it learnt.",
            f"Serve the base model with rope_scaling = {_written(trained)}, as the embedded engine can, or train "
            "without scaling.",
        )


def _written(scaling: RopeScaling | None) -> str:
    return f"{scaling.rope_type}:{scaling.factor:g}" if scaling else "none"
