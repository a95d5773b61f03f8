"""Recipes run in this process: no start-up to pay for each."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comfyloop.train.specs.text import TrainSpec

RunRecipe = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run_recipe(tmp_path: Path) -> RunRecipe:
    """`run_recipe(recipe, model, rows, **values of the spec)`: the lines of the run's log.

    `stop_at=n` stops it at the n-th micro-batch (or look) as the file `cancel` does; `die_at=n` ends it after
    step n as kill -9 would, with nothing more said or kept. Called again, it goes on with the same run.
    """

    def run(
        recipe: ModuleType,
        model: Path,
        rows: list[Any],
        stop_at: int = 0,
        die_at: int = 0,
        name: str = "run",
        **values: Any,
    ) -> list[dict[str, Any]]:
        from comfyloop.train.run.control import Cancelled, Control
        from comfyloop.train.run.directory import RunDirectory
        from comfyloop.train.run.log import RunLog

        class Stopping(Control):
            checks = 0

            def check(self) -> None:
                self.checks += 1
                if self.checks == stop_at:
                    raise Cancelled
                super().check()

        class Dying(RunLog):
            def step(self, **line: Any) -> None:
                super().step(**line)
                if line["step"] == die_at != 0:
                    raise Died

        directory = RunDirectory(tmp_path / name)
        directory.path.mkdir(exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (directory.path / "train.jsonl").write_text("\n".join(lines) + "\n")
        told = {"model": str(model), "train": "train.jsonl", "dtype": "float32"} | values
        told["recipe"] = recipe.__name__.rpartition(".")[2]
        log = Dying(directory)
        with contextlib.suppress(Cancelled, Died):
            recipe.run(directory, TrainSpec.model_validate(told), log, Stopping(directory, log.held))
        return list(directory.log_lines())

    return run


class Died(Exception):
    pass
