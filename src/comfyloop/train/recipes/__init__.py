"""How each recipe trains: one readable file each. What they are is in `comfyloop.recipes`, under the same names."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfyloop.train.run.control import Control
    from comfyloop.train.run.directory import RunDirectory
    from comfyloop.train.run.log import RunLog
    from comfyloop.train.specs.image import ImageTrainSpec
    from comfyloop.train.specs.text import TrainSpec


def run(directory: RunDirectory, spec: TrainSpec | ImageTrainSpec, log: RunLog, control: Control) -> None:
    """Run the recipe of the spec. Raises what that raises."""
    importlib.import_module(f"{__name__}.{spec.recipe}").run(directory, spec, log, control)
