"""Specs as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from comfyloop.complaints import in_words
from comfyloop.errors import InvalidInput, NotFound
from comfyloop.recipes import of_side
from comfyloop.train.specs.base import RunSpec
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.joint import JointSpec
from comfyloop.train.specs.judge import JudgeSpec
from comfyloop.train.specs.text import TrainSpec

SPEC_FILE = "spec.json"


def write_spec(run_dir: Path, spec: RunSpec | JointSpec | JudgeSpec) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_spec(run_dir: Path) -> TrainSpec | ImageTrainSpec | JointSpec | JudgeSpec:
    """The spec of a run of either side or of both, or of a comparison, told apart by its recipe.

    Raises:
        NotFound: There is no spec.json.
        InvalidInput: It is not a spec; names each field that is wrong.
    """
    path = run_dir / SPEC_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8 text.", "Save the file as UTF-8.") from None
    except FileNotFoundError:
        raise NotFound(
            f"{run_dir} is not a run directory: it has no {SPEC_FILE}.",
            "Write one with comfyloop.train.specs.files.write_spec, or name another directory.",
        ) from None
    recipe = _recipe(text)
    try:
        if recipe in of_side("image"):
            return ImageTrainSpec.model_validate_json(text)
        match recipe:
            case "joint":
                return JointSpec.model_validate_json(text)
            case "judge":
                return JudgeSpec.model_validate_json(text)
        return TrainSpec.model_validate_json(text)
    except ValidationError as error:
        wrong = in_words(error.errors(), "the file", _parsed(text))
        raise InvalidInput(f"{path} is not a training spec: {wrong}.", "Correct these fields.") from None


def _recipe(text: str) -> str:
    spec = _parsed(text)
    return str(spec.get("recipe", "")) if isinstance(spec, dict) else ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
