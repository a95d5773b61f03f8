"""Vision towers, projectors and preferences on every family that sees, with its real classes and processor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyloop.models.parts import Parts
from comfyloop.train.recipes import dpo, sft
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.models import describe, load
from tests.families import SEEING, make_family
from tests.unit.train.conftest import RunRecipe

pytestmark = pytest.mark.slow

ALL_PARTS = {"freeze_vit": False, "freeze_aligner": False}


def rows(folder: Path) -> list[dict[str, Any]]:
    made = []
    for number, size in enumerate([(40, 30), (17, 60)]):
        Image.effect_noise(size, 90).convert("RGB").save(folder / f"{number}.png")
        turns = [
            {"role": "user", "content": "<image>What is this?"},
            {"role": "assistant", "content": f"A red mug, number {number}."},
        ]
        made.append({"messages": turns, "images": [f"../{number}.png"], "rejected_response": "The lazy dog."})
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    return [*made, {"messages": turns, "rejected_response": "So."}]


@pytest.mark.parametrize("name", SEEING)
def test_every_part_is_found_trained_and_checkpointed(
    name: str, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    model = make_family(name, tmp_path / "model")
    loaded = load(TrainSpec(model=str(model), train="t", **ALL_PARTS), describe(str(model)), None)
    parts = Parts(loaded.whole)
    assert {parts.of(n) for n, p in loaded.whole.named_parameters() if p.requires_grad} == {
        "llm", "vit", "aligner",
    }  # fmt: skip
    told: dict[str, Any] = {**ALL_PARTS, "max_steps": 3, "learning_rate": 0.01}
    data = rows(tmp_path)
    plain = run_recipe(sft, model, data, **told)
    assert plain[-1]["loss"] < 0.9 * plain[0]["loss"]
    less = {"gradient_checkpointing": True, "vit_gradient_checkpointing": True}
    again = run_recipe(sft, model, data, name="less", **less, **told)
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in plain], abs=1e-5)

    pairs = run_recipe(dpo, model, data, name="pairs", **told)
    assert pairs[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert pairs[-1]["loss"] < 0.8 * math.log(2)
    assert pairs[-1]["rewards/accuracies"] == 1.0
