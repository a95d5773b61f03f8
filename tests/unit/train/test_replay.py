"""General questions hold the model to its base, and learning stops when what is kept back gets no better."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from comfyloop.formats import Row, Turn
from comfyloop.train.data.examples import Example
from comfyloop.train.recipes import sft
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import Loaded, describe, load
from comfyloop.train.text.replay import hold_to_base

from .conftest import RunRecipe

GENERAL = [
    "The sky is blue because of the air.",
    "Paris is the capital of France.",
    "Seven and five are twelve.",
]


class Never:
    def check(self) -> None: ...


def line(number: int, question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"s{number}", "messages": turns, **more}


def learned() -> list[dict[str, Any]]:
    return [
        line(n, f"Write about a {t}.", f"Meet the {t}: slowly made.")
        for n, t in enumerate(("mug", "lamp", "cup"))
    ]


def replayed() -> list[dict[str, Any]]:
    return [line(10 + n, f"Question {n}?", text, replay=True) for n, text in enumerate(GENERAL)]


def held(
    model_directory: Path, adapter: Path | None, cache: Path | None = None, control: Any = None
) -> tuple[Loaded, list[Example]]:
    """A model, and the general answers with what its base finds likely as their targets."""
    spec = TrainSpec(
        model=str(model_directory),
        train="t",
        dtype="float32",
        feature_cache_dir=None if cache is None else str(cache),
    )
    description = describe(str(model_directory))
    model = load(spec, description, adapter)
    encoder = description.encoder(spec)
    rows = [
        Row(n, str(n), (Turn("user", f"Question {n}?"), Turn("assistant", text)), part="replay")
        for n, text in enumerate(GENERAL)
    ]
    examples = [encoder.encode(row) for row in rows]
    with tempfile.TemporaryDirectory() as place:
        log = RunLog(RunDirectory(Path(place)), silent=True)
        control = control or Never()
        return model, hold_to_base(model, ImageFeatures(model), examples, spec, log, control)


def divergence(model_directory: Path, adapter: Path | None) -> float:
    """Of a model from its base over the general answers, nats a token."""
    model, examples = held(model_directory, adapter)
    with torch.no_grad():
        return sum(sft.answer_loss(model, ImageFeatures(model), examples).means) / len(examples)


def test_a_run_that_goes_on_is_held_to_the_base_and_not_to_its_parent(
    tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    run_recipe(sft, tiny_llm, learned(), epochs=4, learning_rate=1e-2)
    _, of_base = held(tiny_llm, None)
    _, of_parent = held(tiny_llm, tmp_path / "run" / "adapter")
    for one, other in zip(of_base, of_parent, strict=True):
        assert one.targets is not None and other.targets is not None
        assert torch.equal(one.targets.ids, other.targets.ids)
        torch.testing.assert_close(one.targets.shares, other.targets.shares)


def test_what_the_base_finds_likely_is_asked_once(
    tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    class Count:
        groups = 0

        def check(self) -> None:
            self.groups += 1

    run_recipe(sft, tiny_llm, learned(), epochs=1)
    cache, first, second, other = tmp_path / "cache", Count(), Count(), Count()
    _, asked = held(tiny_llm, None, cache, first)
    _, remembered = held(tiny_llm, tmp_path / "run" / "adapter", cache, second)  # whatever LoRA is on it
    assert first.groups > 0 and second.groups == 0
    for one, again in zip(asked, remembered, strict=True):
        assert one.targets is not None and again.targets is not None
        assert (
            torch.equal(one.targets.ids, again.targets.ids)
            and one.targets.ids.dtype == again.targets.ids.dtype
        )
        assert one.targets.shares is not None and again.targets.shares is not None
        assert torch.equal(one.targets.shares, again.targets.shares)
    moved = shutil.copytree(tiny_llm, tmp_path / "moved")
    weights = load_file(moved / "model.safetensors")
    save_file({n: w + 1e-3 for n, w in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    held(moved, None, cache, other)
    assert other.groups == first.groups  # another base model finds other things likely


def test_replay_keeps_the_model_near_its_base(tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path) -> None:
    values = {"epochs": 12, "learning_rate": 1e-2, "per_device_train_batch_size": 6}
    bare = run_recipe(sft, tiny_llm, learned(), name="bare", **values)
    kept = run_recipe(sft, tiny_llm, [*learned(), *replayed()], name="kept", **values)
    at_first = divergence(
        tiny_llm, None
    )  # the unlikely rest is left out, and a random model finds much likely
    without, with_replay = (divergence(tiny_llm, tmp_path / name / "adapter") for name in ("bare", "kept"))
    assert with_replay < at_first + 0.5 * (without - at_first)
    assert kept[-1]["loss"] < 0.8 * kept[0]["loss"] and bare[-1]["loss"] < 0.8 * bare[0]["loss"]


def test_a_run_tells_how_hard_each_sample_still_is(
    tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    run_recipe(sft, tiny_llm, learned(), epochs=2)
    losses = json.loads((tmp_path / "run" / "row_losses.json").read_text())
    assert set(losses) == {"s0", "s1", "s2"} and all(loss > 0 for loss in losses.values())
    last = RunDirectory(tmp_path / "run").rows_of(2)  # both steps were made of all three
    assert last == {id: round(loss, 4) for id, loss in losses.items()}
    assert RunDirectory(tmp_path / "run").rows_of(1).keys() == last.keys() and not RunDirectory(
        tmp_path
    ).rows_of(1)


def test_a_run_stops_and_keeps_its_best_weights_when_what_is_kept_back_gets_worse(
    tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    opposite = [line(n, row["messages"][0]["content"], "No, no, no.") for n, row in enumerate(learned())]
    values = {"epochs": 40, "learning_rate": 3e-2, "eval_steps": 2}
    file = tmp_path / "dev.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in opposite))
    lines = run_recipe(sft, tiny_llm, learned(), holdout=str(file), early_stopping_patience=2, **values)
    seen = [row["holdout_loss"] for row in lines if row["holdout_loss"] is not None]
    assert len(seen) < 20 and min(seen) < seen[-1] and min(seen) < seen[-2]
    again = run_recipe(sft, tiny_llm, learned(), holdout=str(file), name="whole", **values)
    assert len(again) > len(lines)
