"""Builds a training spec from command-line options. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from comfyloop.complaints import in_words
from comfyloop.errors import InvalidInput
from comfyloop.recipes import RECIPES
from comfyloop.train.specs.base import RunSpec
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.rates import own_rate
from comfyloop.train.specs.text import TrainSpec

WHOLE_WEIGHTS_RATE = 1e-5


def make_spec(base_values: Mapping[str, Any], assignments: Sequence[str]) -> TrainSpec | ImageTrainSpec:
    """Build a spec from base values and `name=value` assignments, which take precedence. The default learning rate
    depends on the recipe.

    Args:
        base_values: By field name, `adapter.r` for a field of a part; None: not said.
        assignments: `learning_rate=1e-4`, `adapter.target_modules=all-linear`, `adapter.modules_to_save=a,b`.

    Raises:
        InvalidInput: There is no such field, or the value does not fit it.
    """
    fields: dict[str, Any] = {}
    values: dict[str, Any] = {name: value for name, value in base_values.items() if value is not None}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InvalidInput(f"{assignment!r} says no value.", "Write --set name=value.")
        values[name.strip()] = _value(name.strip(), text.strip())
    recipe = RECIPES.get(str(values.get("recipe") or TrainSpec.model_fields["recipe"].default))
    kind = ImageTrainSpec if recipe is not None and recipe.side == "image" else TrainSpec
    names = field_names(kind)
    for name, value in values.items():
        if name not in names:
            raise InvalidInput(
                f"A training spec has no field {name!r}.", f"The fields are {', '.join(sorted(names))}."
            )
        part, dot, field = name.rpartition(".")
        (fields.setdefault(part, {}) if dot else fields)[field] = value
    if fields.get("tuner_type") == "full":
        fields.setdefault("learning_rate", WHOLE_WEIGHTS_RATE)
    elif recipe is not None:
        fields.setdefault("learning_rate", own_rate(recipe, str(fields.get("model", ""))))
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        wrong = in_words(error.errors(), "the spec", fields)
        raise InvalidInput(f"These options are not a training spec: {wrong}.", "Correct them.") from None


def field_names(kind: type[RunSpec]) -> list[str]:
    """All fields of a spec; those of its parts with the part's name before them."""
    names = []
    for name, field in kind.model_fields.items():
        names.append(name)
        if isinstance(field.default, BaseModel):
            names += [f"{name}.{inner}" for inner in type(field.default).model_fields]
    return names


def _value(name: str, text: str) -> Any:
    """Parse a value: lists are separated by commas; everything else is JSON if it parses, otherwise plain text."""
    if name in {"adapter.modules_to_save", "adapter.target_modules"} and "," in text:
        return tuple(part.strip() for part in text.split(","))
    if name == "adapter.modules_to_save":
        return (text,)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets without end
        return None if text in {"None", "none"} else text


def absolute(path: Path | None) -> str | None:
    return str(path.expanduser().resolve()) if path is not None else None
