from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comfyloop.train.prefork.trainer import WarmTrainer
from comfyloop.train.specs.files import write_spec
from comfyloop.train.specs.text import TrainSpec
from tests.integration.train.runs import rows


@pytest.fixture(scope="session")
def shared_trainer() -> Iterator[WarmTrainer]:
    trainer = WarmTrainer(minutes=30)
    yield trainer
    trainer.close()


@pytest.fixture
def warm(shared_trainer: WarmTrainer, tiny_llm: Path) -> WarmTrainer:
    """Runs are forks of it: what is tested is not how long libraries take to import."""
    shared_trainer.prepare(str(tiny_llm), "float32")  # nothing is done where it is there already
    return shared_trainer


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(model: Path | str, name: str = "run", data: list[Any] | None = None, **values: Any) -> Path:
        run = tmp_path / name
        run.mkdir()
        lines = [d if isinstance(d, str) else json.dumps(d) for d in (rows() if data is None else data)]
        (run / "train.jsonl").write_text("\n".join(lines) + "\n")
        (run / "holdout.jsonl").write_text(json.dumps(rows()[0]) + "\n")
        told = {
            "model": str(model), "train": "train.jsonl", "max_steps": 8, "save_steps": 2, "eval_steps": 3,
            "threads": 1, "dtype": "float32", "nice": 10, **values,  # a fork of `warm` cannot rise above its 10
        }  # fmt: skip
        write_spec(run, TrainSpec.model_validate(told))
        return run

    return make
