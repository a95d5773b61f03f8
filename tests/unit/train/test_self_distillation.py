"""Learning of oneself having seen the answer: what is shown, what is sampled, what the loss is, whom one learns of."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from comfyloop.errors import DataError
from comfyloop.formats import Row, Turn
from comfyloop.train.data.reading import Demonstrated, read_demonstrated, with_demonstration
from comfyloop.train.recipes import sdft, sft
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.run.updates import OptimizerStep
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import Loaded, describe
from comfyloop.train.text.sampled import sample
from comfyloop.train.text.teacher import Teacher
from tests.unit.train.conftest import RunRecipe
from tests.unit.train.test_loss import with_a_say
from tests.unit.train.test_preferences import THINGS, pair_row, reading, spec_for

pytestmark = pytest.mark.slow


def items(model: Path, folder: Path) -> list[Demonstrated]:
    return reading(read_demonstrated, model, folder, [pair_row(thing) for thing in THINGS])


@pytest.fixture
def loaded(tiny_llm: Path) -> Loaded:
    model = with_a_say(tiny_llm)
    model.eval()
    return model


def test_the_teacher_is_shown_the_answer_with_the_question_and_the_student_is_not(tmp_path: Path) -> None:
    turns = (
        Turn("user", "One?"),
        Turn("assistant", "1"),
        Turn("user", ("Two?", None)),
        Turn("assistant", " Due. "),
    )
    shown = with_demonstration(Row(1, "s", turns, (tmp_path / "a.png",)))
    assert shown.turns[:2] == turns[:2] and shown.turns[3] == turns[3] and shown.turns[2].pictures == 1
    assert shown.turns[2].text == (
        "Two?\n\nThis is an example for a response to the question:\nDue.\n\nNow answer with a response of your own."
    )


def test_rows_that_cannot_be_shown_are_named(tiny_llm: Path, tmp_path: Path) -> None:
    long = pair_row("mug")
    long["messages"] = [long["messages"][0], {"role": "assistant", "content": "word " * 110}]
    alone = {"messages": [{"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}]}
    with pytest.raises(DataError, match=r"with its answer shown to the teacher: it has .* tokens") as error:
        reading(read_demonstrated, tiny_llm, tmp_path, [pair_row("cup"), long, alone])
    assert "train.jsonl:3" in str(error.value)


def test_a_step_is_the_divergence_of_plain_transformers(
    tiny_llm: Path, tmp_path: Path, loaded: Loaded
) -> None:
    """KL(teacher || student) a token over the whole vocabulary, from two padded-free forward passes."""
    encoder = describe(str(tiny_llm)).encoder(spec_for(tiny_llm))
    features, some = ImageFeatures(loaded), items(tiny_llm, tmp_path)[:2]
    tokens = [torch.tensor([5, 9, 40]), torch.tensor([7, 7])]
    students = [encoder.continued(item.example, ids) for item, ids in zip(some, tokens, strict=True)]
    shown = [
        encoder.continued(item.teacher, ids) for item, ids in zip(some, tokens, strict=True) if item.teacher
    ]
    teacher = Teacher(loaded, OptimizerStep(loaded, spec_for(tiny_llm)), 0.0)
    whole = loaded.head.weight.shape[0]
    made = teacher.teach(features, shown, students, whole)
    loaded.eval()
    got = sft.answer_loss(loaded, features, made).total
    loaded.go_alone("its own code is asked")
    expected = torch.zeros(())
    for student, taught in zip(students, shown, strict=True):
        q, p = (
            torch.log_softmax(loaded.whole(input_ids=e.input_ids[None]).logits[0, e.answer - 1].float(), -1)
            for e in (student, taught)
        )
        expected = expected + (p.exp() * (p - q)).sum()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    got.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for _, parameter in loaded.trainable)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_the_teacher_follows_as_far_as_it_is_told(rate: float, tiny_llm: Path, loaded: Loaded) -> None:
    updates = OptimizerStep(loaded, spec_for(tiny_llm))
    teacher = Teacher(loaded, updates, rate)
    name, weight = next((n, w) for n, w in loaded.trainable if "lora_B" in n)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    teacher.follow()
    with teacher._speaking():
        torch.testing.assert_close(weight.detach(), before + (1.0 if rate == 1 else rate))
    torch.testing.assert_close(weight.detach(), before + 1.0)
    kept = [kept for kept, _ in updates.kept()]
    assert (f"teacher.{name}" in kept) == (rate < 1)


def test_sampled_answers_are_bounded_end_where_the_model_stops_and_come_again(
    tiny_llm: Path, loaded: Loaded
) -> None:
    encoder = describe(str(tiny_llm)).encoder(spec_for(tiny_llm))
    rows = [Row(n, f"s{n}", (Turn("user", "Why? " * n), Turn("assistant", "So."))) for n in (1, 3)]
    examples = [encoder.encode(row) for row in rows]
    checks: list[int] = []

    def ask(seed: int, temperature: float = 1.0, some: slice = slice(None)) -> list[list[int]]:
        loaded.go_alone("it writes answers")
        made = sample(
            loaded, examples[some], encoder, most=40, temperature=temperature, seed=seed,
            check=lambda: checks.append(1),
        )  # fmt: skip
        return [answer.tolist() for answer in made]

    state = torch.get_rng_state()
    first = ask(1)
    assert torch.equal(torch.get_rng_state(), state)  # what else is drawn by chance does not move
    assert first == ask(1) != ask(2)
    for answer in first:
        assert 1 <= len(answer) <= 40
        assert not encoder.stop_ids & set(answer[:-1])
        assert len(answer) == 40 or answer[-1] in encoder.stop_ids
    assert checks
    both = ask(1, 0.0)  # a neighbour and what is put before the shorter question change nothing
    assert both == [*ask(1, 0.0, slice(0, 1)), *ask(1, 0.0, slice(1, 2))]


def sampled(run: Path) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    for block in (run / "sampled.jsonl").read_text().split("\n"):
        with contextlib.suppress(ValueError):  # one that was torn
            answers += json.loads(block)["answers"]
    return answers


def test_what_was_sampled_can_be_read_and_none_is_where_none_is_wanted(
    tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    rows = [pair_row(thing, id=thing) for thing in THINGS]
    values = {"max_steps": 6, "epochs": 9, "per_device_train_batch_size": 3, "learning_rate": 0.01}
    run_recipe(sdft, tiny_llm, rows, **values)
    lines = sampled(tmp_path / "run")
    assert {line["id"] for line in lines} == set(THINGS)
    assert {line["step"] for line in lines} == set(range(6))
    assert all(0 < len(line["tokens"]) <= 64 for line in lines) and all("text" in line for line in lines)
    run_recipe(sdft, tiny_llm, rows, name="off", distillation={"lmbda": 0.0}, **values)
    assert not (tmp_path / "off" / "sampled.jsonl").exists()
    run_recipe(sdft, tiny_llm, rows, name="half", distillation={"lmbda": 0.5}, **values)
    assert 0 < len(sampled(tmp_path / "half")) < len(lines)


def test_a_torn_block_is_sampled_again_as_it_was(
    tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    rows = [pair_row(thing, id=thing) for thing in THINGS]
    values = {
        "max_steps": 6,
        "epochs": 9,
        "per_device_train_batch_size": 3,
        "save_steps": 2,
        "learning_rate": 0.01,
    }
    whole = run_recipe(sdft, tiny_llm, rows, name="whole", **values)
    run_recipe(sdft, tiny_llm, rows, die_at=5, **values)
    file = tmp_path / "run" / "sampled.jsonl"
    file.write_text(file.read_text()[:-40])
    gone_on = run_recipe(sdft, tiny_llm, rows, **values)
    assert [line["loss"] for line in gone_on] == [line["loss"] for line in whole]
    assert sampled(tmp_path / "run") == sampled(tmp_path / "whole")


def test_a_teacher_that_is_none_is_said(tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path) -> None:
    """A random model finds nothing likelier for having seen it but by chance; here it is told what it found."""
    log = RunLog(RunDirectory(tmp_path))
    sdft.tell_of_teacher(log, (-2.0, -2.5))
    sdft.tell_of_teacher(log, (-2.0, -0.5))
    warnings = RunDirectory(tmp_path).read_status().warnings
    assert len(warnings) == 1 and "nothing to teach itself. Set recipe = sft" in warnings[0]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"train_engine": "swift"}, "sdft is trained by our own trainer"),
        ({"world_size": 2}, "sdft samples answers, which one process does"),
        ({"train_on": "all"}, "sdft samples last answers"),
    ],
)
def test_what_does_not_go_with_it_is_refused(values: dict[str, Any], why: str, tiny_llm: Path) -> None:
    with pytest.raises(ValueError, match=why):
        spec_for(tiny_llm, recipe="sdft", **values)


def test_pictures_are_seen_by_both_and_replay_is_not_sampled(
    tiny_vlm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    rows = []
    for number, thing in enumerate(THINGS):
        Image.new("RGB", (40, 30), (40 * number, 200, 90)).save(tmp_path / f"{thing}.png")
        row = pair_row(thing, id=thing, images=[f"../{thing}.png"])
        row["messages"][0]["content"] = "<image>" + row["messages"][0]["content"]
        rows.append(row)
    rows.append({**pair_row("sky", id="sky"), "replay": True})
    lines = run_recipe(
        sdft, tiny_vlm, rows, max_steps=3, epochs=9, per_device_train_batch_size=6,
        distillation={"max_completion_length": 8},
    )  # fmt: skip
    assert len(lines) == 3
    lines = sampled(tmp_path / "run")
    assert {line["id"] for line in lines} == set(THINGS)
    assert all(len(line["tokens"]) <= 8 for line in lines)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_a_run_goes_on_from_a_version(tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path) -> None:
    rows = [pair_row(thing) for thing in THINGS]
    values = {"max_steps": 4, "epochs": 9, "learning_rate": 0.01}
    run_recipe(sft, tiny_llm, rows, name="parent", **values)
    parent = str(tmp_path / "parent" / "adapter")
    lines = run_recipe(sdft, tiny_llm, rows, adapter={"init_from": parent}, **values)
    assert len(lines) == 4 and RunDirectory(tmp_path / "run").adapter.is_dir()
