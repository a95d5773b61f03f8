"""Each way of training learns, to losses that are pinned: a backward pass that is wrong ends elsewhere.

A tiny Qwen2-VL of the real class (queries, keys and values with biases), 24 steps over eleven captions, three of
them with pictures; the losses are of the first step, of the last, and of three captions that are never trained on.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from comfyloop.train.recipes import dpo, kto, sdft, sft
from tests.families import make_family
from tests.unit.train.conftest import RunRecipe

pytestmark = pytest.mark.slow

THINGS = ["pillow", "lamp", "kettle", "scarf", "mug", "candle", "bowl", "towel", "basket", "vase", "clock"]
UNSEEN = ["tray", "rug", "jug"]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra `quant`)"
)
TOWERS = {"freeze_vit": False, "freeze_aligner": False}
FULL = {"tuner_type": "full", "learning_rate": 2e-3}
QLORA = {"quant_method": "bnb"}


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("qwen2_vl", tmp_path_factory.mktemp("models") / "qwen2-vl")


def row(thing: str, folder: Path, label: bool | None) -> dict[str, Any]:
    seen = thing in THINGS[:3]
    turns = [
        {"role": "user", "content": f"{'<image>' * seen}Write a caption for a {thing}."},
        {"role": "assistant", "content": f"Meet the {thing}: made slowly."},
    ]
    if seen:
        Image.new("RGB", (24, 16), (20 * len(thing), 90, 200)).save(folder / f"{thing}.png")
    picture = {"images": [f"../{thing}.png"]} if seen else {}
    judged = {"rejected_response": f"A {thing}!"} if label is None else {"label": label}
    return {"messages": turns, **judged, **picture}


def learn(run: RunRecipe, recipe: ModuleType, model: Path, folder: Path, **values: Any) -> list[float]:
    """[loss of the first step, of the last, on the hold-out before, after]."""
    labels = [number % 3 != 0 if recipe is kto else None for number in range(len(THINGS))]
    rows = [row(thing, folder, label) for thing, label in zip(THINGS, labels, strict=True)]
    held = [row(thing, folder, label) for thing, label in zip(UNSEEN, labels[1:], strict=False)]
    (folder / "held.jsonl").write_text("".join(json.dumps(each) + "\n" for each in held))
    adapter = {"target_modules": "attention", **values.pop("adapter", {})}
    lines = run(
        recipe, model, rows, adapter=adapter,
        **{"holdout": "../held.jsonl", "max_steps": 24, "epochs": 99, "learning_rate": 0.01, **values},
    )  # fmt: skip
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    looks = [line["holdout_loss"] for line in lines if line["holdout_loss"] is not None]
    return [losses[0], losses[-1], looks[0], looks[-1]]


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        pytest.param({}, [7.042, 2.327, 6.683, 2.953], id="LoRA"),
        pytest.param({"adapter": {"use_dora": True}}, [7.042, 2.292, 6.683, 2.908], id="DoRA"),
        pytest.param({"adapter": {"use_rslora": True, "lora_alpha": 4}}, [7.042, 2.701, 6.683, 3.157], id="rsLoRA"),
        pytest.param({"adapter": {"target_modules": "all-linear"}}, [7.042, 0.690, 6.683, 1.666], id="all layers"),
        pytest.param(TOWERS, [7.042, 2.371, 6.683, 3.025], id="towers"),
        pytest.param({"adapter": {"modules_to_save": ["merger"]}}, [7.042, 2.327, 6.683, 2.821], id="modules_to_save"),
        pytest.param(FULL, [7.042, 0.436, 6.683, 1.802], id="whole weights"),
        pytest.param({**FULL, **TOWERS}, [7.042, 0.474, 6.683, 1.682], id="whole weights, towers too"),
        pytest.param(QLORA, [7.015, 2.466, 6.657, 3.038], marks=needs_bitsandbytes, id="QLoRA"),
        pytest.param(
            {**QLORA, "adapter": {"target_modules": "all-linear"}, "gradient_checkpointing": True},
            [7.015, 0.786, 6.657, 1.759], marks=needs_bitsandbytes, id="QLoRA on all layers",
        ),
        pytest.param(
            {**QLORA, "adapter": {"use_dora": True}}, [7.015, 2.442, 6.657, 3.007],
            marks=needs_bitsandbytes, id="QDoRA",
        ),
    ],
)  # fmt: skip
def test_each_way_learns(
    way: dict[str, Any], expected: list[float], qwen2_vl: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    found = learn(run_recipe, sft, qwen2_vl, tmp_path, **way)
    assert found == pytest.approx(expected, rel=0.03, abs=0.01)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        pytest.param({}, [7.042, 2.331, 6.695, 2.963], id="LoRA"),
        pytest.param(QLORA, [7.009, 2.412, 6.658, 2.859], marks=needs_bitsandbytes, id="QLoRA"),
    ],
)
def test_half_precision_learns_as_much(
    way: dict[str, Any], expected: list[float], qwen2_vl: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    """Rounding differs from processor to processor, so the bounds are wider."""
    found = learn(run_recipe, sft, qwen2_vl, tmp_path, dtype="bfloat16", **way)
    assert found == pytest.approx(expected, rel=0.15, abs=0.05)


@pytest.mark.parametrize("way", [{}, pytest.param(QLORA, marks=needs_bitsandbytes)], ids=["LoRA", "QLoRA"])
@pytest.mark.parametrize(
    ("recipe", "expected"), [(dpo, [0.693, 0.158, 0.693, 0.342]), (kto, [0.5, 0.285, 0.5, 0.510])]
)
def test_preferences_are_learnt(
    recipe: ModuleType,
    expected: list[float],
    way: dict[str, Any],
    qwen2_vl: Path,
    run_recipe: RunRecipe,
    tmp_path: Path,
) -> None:
    found = learn(run_recipe, recipe, qwen2_vl, tmp_path, **{**way, "learning_rate": 1e-3})
    assert found == pytest.approx(expected, rel=0.05, abs=0.02)


def test_what_is_left_is_told_without_the_time_on_hold(
    run_recipe: RunRecipe, qwen2_vl: Path, tmp_path: Path
) -> None:
    """Held while it reads its data, as when somebody asks just then: -872 s were told, which no clock shows."""
    hold = tmp_path / "run" / "hold"
    hold.parent.mkdir()
    hold.touch()
    threading.Timer(3.0, hold.unlink).start()
    lines = run_recipe(sft, qwen2_vl, [row(thing, tmp_path, None) for thing in THINGS], max_steps=3)
    left = [line["eta_seconds"] for line in lines if line["loss"] is not None]
    assert len(left) == 3 and left[-1] == 0 and all(seconds >= 0 for seconds in left), left


@pytest.mark.parametrize(
    ("lmbda", "expected"),
    [
        pytest.param(1.0, [3.772, 2.827, 6.683, 6.534], id="own answers"),
        pytest.param(0.0, [3.490, 2.007, 6.683, 6.590], id="wanted answers"),
    ],
)
def test_what_the_teacher_would_say_is_learnt(
    lmbda: float, expected: list[float], qwen2_vl: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    """A random model has little to teach; what it would say having seen the answer is learnt all the same."""
    values = {"distillation": {"lmbda": lmbda, "max_completion_length": 12, "teacher_update_rate": 0.0}}
    found = learn(run_recipe, sdft, qwen2_vl, tmp_path, **values)
    assert found == pytest.approx(expected, rel=0.05, abs=0.02)
    assert found[1] < 0.9 * found[0] and found[3] < found[2]
