"""Preference pairs and labelled answers: how rows become what is compared, and what the losses are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from comfyloop.errors import DataError
from comfyloop.formats import Row, Turn, UnusableRow
from comfyloop.train.data.examples import Example
from comfyloop.train.data.reading import read_examples, read_labelled, read_pairs
from comfyloop.train.kernels.losses import dpo_loss, kto_loss
from comfyloop.train.recipes import dpo, kto, sdft, sft
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import describe, load
from tests.unit.train.conftest import RunRecipe

pytestmark = pytest.mark.slow

THINGS = ["pillow", "lamp", "kettle", "scarf", "mug"]


def pair_row(thing: str, **more: Any) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"Write a caption for a {thing}."},
        {"role": "assistant", "content": f"Meet the {thing}: made slowly."},
    ]
    return {"messages": turns, "rejected_response": f"A {thing}!", **more}


def labelled_row(thing: str, label: bool, **more: Any) -> dict[str, Any]:
    return {"messages": pair_row(thing)["messages"], "label": label, **more}


def same(one: Example, other: Example) -> bool:
    return (
        torch.equal(one.input_ids, other.input_ids)
        and torch.equal(one.answer, other.answer)
        and one.token_kinds.keys() == other.token_kinds.keys()
        and all(torch.equal(one.token_kinds[k], other.token_kinds[k]) for k in one.token_kinds)
    )


def spec_for(model: Path, **values: Any) -> TrainSpec:
    return TrainSpec.model_validate(
        {"model": str(model), "train": "train.jsonl", "dtype": "float32", **values}
    )


def reading(read: Any, model: Path, tmp_path: Path, rows: list[dict[str, Any]], **values: Any) -> list[Any]:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    directory, spec = RunDirectory(tmp_path), spec_for(model, **values)
    log = RunLog(directory)
    encoder = describe(str(model)).encoder(spec)
    read_all: list[Any] = read(directory, "train.jsonl", encoder, spec, log, Control(directory, log.held))
    return read_all


def test_another_answer_is_as_if_the_row_had_it(tiny_vlm: Path, tmp_path: Path) -> None:
    encoder = describe(str(tiny_vlm)).encoder(spec_for(tiny_vlm))
    Image.new("RGB", (40, 30), (20, 200, 90)).save(tmp_path / "a.png")
    for text, images in (("Two?", ()), ("<image>What is it?", (tmp_path / "a.png",))):
        asked = (Turn("user", "One?"), Turn("assistant", "One."), Turn("user", text))
        row = Row(1, "s", (*asked, Turn("assistant", "A pony, as it seems.")), images)
        other = Row(1, "s", (*asked, Turn("assistant", "No.")), images)
        example = encoder.encode(row)
        made = encoder.with_answer(row, example, "No.")
        assert same(made, encoder.encode(other))
        assert same(encoder.with_answer(other, made, row.answer), example)
        assert made.images is example.images
    named = encoder.with_answer(row, example, "It is <image>.")  # text is text
    assert int(torch.eq(named.input_ids, encoder.image_token_id).sum()) == example.image_tokens
    with pytest.raises(UnusableRow, match="more than the"):
        encoder.with_answer(row, example, "word " * 600)


def test_a_pairs_image_is_looked_at_once(
    tiny_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    rows = []
    for i, thing in enumerate(THINGS):
        Image.new("RGB", (40, 30), (40 * i, 200, 90)).save(tmp_path / "images" / f"{thing}.png")
        row = pair_row(thing, images=[f"images/{thing}.png"])
        row["messages"][0]["content"] = "<image>" + row["messages"][0]["content"]
        rows.append(row)
    pairs = reading(read_pairs, tiny_vlm, tmp_path, rows)
    spec = spec_for(tiny_vlm)
    model = load(spec, describe(str(tiny_vlm)), None)
    looked: list[int] = []
    look = model.whole.get_image_features
    monkeypatch.setattr(
        model.whole, "get_image_features", lambda **k: looked.append(len(k["pixel_values"])) or look(**k)
    )
    features = ImageFeatures(model)
    reference = {pair: torch.zeros(2) for pair in pairs}
    losses, values = dpo.compare(model, features, pairs, reference, spec.preference)
    assert sum(looked) == len(pairs)
    assert torch.isfinite(losses).all()
    model.whole.set_attn_implementation("sdpa")
    for pair, chosen, rejected in zip(pairs, values["logps/chosen"], values["logps/rejected"], strict=True):
        for example, expected in ((pair.chosen, chosen), (pair.rejected, rejected)):
            logits = model.whole(input_ids=example.input_ids[None], **example.pixels.get()).logits[0]
            log_probs = logits.log_softmax(-1)[example.answer - 1, example.input_ids[example.answer]]
            torch.testing.assert_close(log_probs.sum(), expected, rtol=1e-5, atol=1e-4)


def test_mismatched_pairs_never_cost_a_row(tiny_llm: Path, tmp_path: Path) -> None:
    """The answer of the row before, or of one before that where it is the same; the row's own as a last
    resort."""
    rows = [labelled_row("lamp", True), labelled_row("lamp", False), labelled_row("mug", True)]
    rows[1]["messages"] = [{"role": "user", "content": "And a lamp at night?"}, rows[0]["messages"][1]]
    items = reading(read_labelled, tiny_llm, tmp_path, rows)
    tokenizer = describe(str(tiny_llm)).processor

    def answer(example: Example) -> str:
        text: str = tokenizer.decode(example.input_ids[example.answer], skip_special_tokens=True)
        return text

    lamp, mug = "Meet the lamp: made slowly.", "Meet the mug: made slowly."
    assert [answer(item.example) for item in items] == [lamp, lamp, mug]
    assert [answer(item.mismatched) for item in items] == [mug, mug, lamp]
    assert [item.wanted for item in items] == [True, False, True]
    for item in items:
        first = int(item.example.answer[0])
        assert torch.equal(item.example.input_ids[:first], item.mismatched.input_ids[:first])
    alone = reading(read_labelled, tiny_llm, tmp_path, rows[:2])
    assert [answer(item.mismatched) for item in alone] == [lamp, lamp]


def test_a_batch_of_one_and_a_file_of_one(tiny_llm: Path, run_recipe: RunRecipe) -> None:
    lines = run_recipe(
        kto, tiny_llm, [labelled_row("lamp", False)], per_device_train_batch_size=1, epochs=3,
        learning_rate=0.02,
    )  # fmt: skip
    assert len(lines) == 3
    assert lines[-1]["rewards/rejected"] < 0
    assert "rewards/chosen" not in lines[-1]
    assert "rewards/margins" not in lines[-1]


@pytest.mark.parametrize(
    ("read", "row", "reason"),
    [
        (read_pairs, labelled_row("mug", True), "has no rejected_response"),
        (read_pairs, pair_row("mug", rejected_response=" Meet the mug: made slowly. "), "same as its answer"),
        (read_pairs, pair_row("mug", rejected_response="long " * 600), "of its rejected_response: it has"),
        (read_pairs, pair_row("mug", rejected_response=7), "its rejected answer is a int"),
        (read_labelled, pair_row("mug"), "has no label"),
        (read_labelled, labelled_row("mug", "yes"), "not true or false"),
        (read_examples, labelled_row("mug", False), "its label is false"),
    ],
)
def test_rows_that_do_not_fit_the_recipe_are_named(
    read: Any, row: dict[str, Any], reason: str, tiny_llm: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    good = labelled_row("lamp", True, rejected_response="A lamp!")
    with pytest.raises(DataError, match=rf"train.jsonl:2 \(sample odd\): .*{reason}"):
        reading(read, tiny_llm, tmp_path, [good, {**row, "id": "odd"}])
    kept = reading(read, tiny_llm, tmp_path, [good, {**row, "id": "odd"}], skip_bad=True, max_bad_share=0.5)
    assert len(kept) == 1
    assert "left out train.jsonl:2 (sample odd)" in capsys.readouterr().out


def test_all_turns_are_for_sft_alone(tiny_llm: Path) -> None:
    with pytest.raises(ValueError, match="dpo compares last answers"):
        spec_for(tiny_llm, recipe="dpo", train_on="all")


def test_dpo_loss_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0])
    tokens = torch.tensor([4, 2]), torch.tensor([2, 2])
    told = {"loss_type": "sigmoid", "beta": 0.5, "label_smoothing": 0.1}
    got = dpo_loss(chosen, rejected, tokens, **told)
    expected = [0.9 * math.log1p(math.exp(-m)) + 0.1 * math.log1p(math.exp(m)) for m in (0.5, -1.0)]
    torch.testing.assert_close(got, torch.tensor(expected))
    ipo = dpo_loss(chosen, rejected, tokens, **{**told, "loss_type": "ipo"})
    torch.testing.assert_close(ipo, torch.tensor([(0.5 - 0.5 - 1.0) ** 2, (-0.5 - 0.5 - 1.0) ** 2]))


def test_kto_loss_by_hand_and_no_gradient_through_the_divergence() -> None:
    ratios = torch.tensor([2.0, -1.0], requires_grad=True)
    kl = torch.tensor(0.5, requires_grad=True)
    told = {"beta": 0.2, "desirable_weight": 1.0, "undesirable_weight": 3.0}
    got = kto_loss(ratios, torch.tensor([True, False]), kl, **told)
    expected = [1 - 1 / (1 + math.exp(-0.3)), 3 * (1 - 1 / (1 + math.exp(-0.3)))]
    torch.testing.assert_close(got, torch.tensor(expected))
    got.sum().backward()
    assert kl.grad is None
    assert ratios.grad is not None


def judged(recipe: ModuleType) -> list[dict[str, Any]]:
    """Rows for a recipe, one of them unwanted where the recipe can say so."""
    if recipe is kto:
        return [labelled_row(t, i != 1) for i, t in enumerate(THINGS)]
    return [pair_row(t) for t in THINGS]


@pytest.mark.parametrize(("recipe", "stop_at"), [(sft, 16), (sdft, 60), (dpo, 17), (kto, 32)])
def test_stopped_and_killed_runs_go_on_to_the_same_curve(
    recipe: ModuleType, stop_at: int, tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    rows = judged(recipe)
    (tmp_path / "holdout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    values: dict[str, Any] = {
        "max_steps": 9, "epochs": 9, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2,
        "learning_rate": 0.01, "adapter": {"lora_dropout": 0.1}, "holdout": "../holdout.jsonl",
        "eval_steps": 2, "save_steps": 2,
    }  # fmt: skip
    whole = curve(run_recipe(recipe, tiny_llm, rows, name="whole", **values))
    assert [line["step"] for line in whole] == list(range(10))
    stopped = curve(run_recipe(recipe, tiny_llm, rows, stop_at=stop_at, **values))
    assert 0 < len(stopped) < 10
    checkpoints = tmp_path / "run" / "checkpoints"
    newest = max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))
    assert newest == stopped[-1]["step"]  # what was done is kept, and nothing is half done
    died = curve(run_recipe(recipe, tiny_llm, rows, die_at=8, **values))
    assert died == whole[:9]
    assert curve(run_recipe(recipe, tiny_llm, rows, **values)) == whole
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def curve(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    measured = ("samples_per_s", "answer_tokens_per_s", "rss_mb", "eta_seconds")
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


PINNED = {
    "sft": (7.38156, 6.58011, 4.83031, 4.40469),
    "sdft": (3.33527, 3.10438, 3.17424, 1.90785),
    "dpo": (0.69315, 0.28748, 0.00323, 0.00185),
    "kto": (0.5, 0.61450, 0.12735, 0.08847),
}


@pytest.mark.parametrize("recipe", [sft, sdft, dpo, kto])
def test_losses_are_pinned(recipe: ModuleType, tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path) -> None:
    """Four steps of each recipe; a change of these numbers is a change of the training."""
    rows = judged(recipe)
    lines = run_recipe(recipe, tiny_llm, rows, max_steps=4, learning_rate=0.02, gradient_accumulation_steps=2,
                       per_device_train_batch_size=2)  # fmt: skip
    name = recipe.__name__.rpartition(".")[2]
    assert [line["loss"] for line in lines] == pytest.approx(PINNED[name], abs=1e-3)
    if recipe in (dpo, kto):
        assert lines[0]["rewards/chosen"] == pytest.approx(0, abs=1e-5)
        kept = load_file(tmp_path / "run" / "reference.safetensors")["log_probs"]
        assert kept.shape == (2 * len(rows),)


@pytest.mark.parametrize(("labels", "told"), [((True, True), 1), ((False, False), 1), ((True, False), 0)])
def test_labels_of_one_kind_alone_are_warned_of(
    labels: tuple[bool, bool], told: int, tiny_llm: Path, tmp_path: Path
) -> None:
    rows = [labelled_row(f"lamp {n}", label) for n, label in enumerate(labels)]
    reading(read_labelled, tiny_llm, tmp_path, rows)
    warnings = RunDirectory(tmp_path).read_status().warnings
    assert len(warnings) == told
    assert all("kto compares wanted answers with unwanted ones" in warning for warning in warnings)
