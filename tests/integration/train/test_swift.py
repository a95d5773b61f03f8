"""The ms-swift engine, with real ms-swift: skipped where it is not installed, with the reason."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyloop.environments import python_of
from comfyloop.errors import DataError, NotFound
from comfyloop.settings import Settings
from comfyloop.train import runners
from comfyloop.train.prefork.trainer import WarmTrainer
from comfyloop.train.run.directory import RunDirectory, TrainState
from comfyloop.train.run.log import NAMES
from comfyloop.train.runners import local
from comfyloop.train.specs.files import write_spec
from comfyloop.train.specs.text import TrainSpec
from tests.integration.train.runs import finish, rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def swift() -> None:
    try:
        python_of("swift", Settings())
    except NotFound as error:
        pytest.skip(str(error))


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in RunDirectory(run).log_lines() if line["loss"] is not None]


def said(run: Path) -> str:
    return (run / "train.out").read_text()


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while RunDirectory(run).read_status().step < step:
        assert time.monotonic() < deadline and not local.poll(run).state.ended, said(run)
        time.sleep(0.05)


@pytest.fixture
def make_swift_run(make_run: Callable[..., Path]) -> Callable[..., Path]:
    def make(model: Path, name: str = "swift", **values: Any) -> Path:
        return make_run(model, name, **{"train_engine": "swift", "learning_rate": 0.02, **values})

    return make


def test_the_loss_is_that_of_our_own_trainer(
    tiny_llm: Path, make_swift_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    """Same model, adapter to begin with, data, order and precision: the losses agree step by step."""
    first = make_swift_run(tiny_llm, "first", train_engine="comfyloop", max_steps=1)
    local.start(first, warm=warm)
    finish(first)
    same = {
        "adapter": {"init_from": str(first / "adapter")},
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,  # all 11 rows a step: no order can differ
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
        "learning_rate": 0.01,
        "max_steps": 8,
        "epochs": 8,
    }
    ours = make_swift_run(tiny_llm, "ours", train_engine="comfyloop", **same)
    theirs = make_swift_run(tiny_llm, "theirs", **same)
    for run in (ours, theirs):
        local.start(run, warm=warm)
        finish(run)
    assert len(losses(ours)) == 8
    assert losses(theirs) == pytest.approx(losses(ours), abs=1e-3)
    assert losses(ours)[-1] < losses(ours)[0] - 0.5
    differences = [abs(a - b) for a, b in zip(losses(ours), losses(theirs), strict=True)]
    print(f"largest difference of a step's loss: {max(differences):.2e}")


def test_a_run_of_a_vision_language_model(
    tiny_vlm: Path, make_swift_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    """Log, verdict and adapter come back; the adapter is one that our own trainer goes on from."""
    data = rows(images=True)
    run = make_swift_run(tiny_vlm, data=data, holdout="holdout.jsonl")
    (run / "images").mkdir()
    for number, row in enumerate(data):
        Image.new("RGB", (40, 30), (20 * number, 90, 200)).save(run / row["images"][0])
    local.start(run, warm=warm)
    status = finish(run)
    lines = list(RunDirectory(run).log_lines())
    assert [line["step"] for line in lines if line["loss"] is not None] == list(range(1, 9))
    assert set(NAMES) <= set(lines[0])
    assert [line["step"] for line in lines if line["holdout_loss"] is not None] == [3, 6, 8]
    assert 0 < status.trainable_parameters < status.total_parameters
    assert "every one of 11 rows was used as it was given" in said(run)
    assert sorted(path.name for path in (run / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    more = make_swift_run(
        tiny_vlm, "more", data=data, train_engine="comfyloop", adapter={"init_from": str(run / "adapter")}
    )
    (more / "images").symlink_to(run / "images")
    local.start(more, warm=warm)
    finish(more)
    assert losses(more)[0] < losses(run)[0] - 0.5  # it begins where ms-swift left off


def test_qlora(tiny_llm: Path, make_swift_run: Callable[..., Path], warm: WarmTrainer) -> None:
    """It learns on after a look at the hold-out, which would have its weights packed and its gradients wrong."""
    run = make_swift_run(
        tiny_llm, quant_method="bnb", dtype="bfloat16", max_steps=16, epochs=8, eval_steps=1,
        holdout="holdout.jsonl",
    )  # fmt: skip
    local.start(run, warm=warm)
    finish(run)
    assert "every one of 11 rows was used as it was given" in said(run)
    assert "quant" in (run / "swift" / "args.json").read_text()
    looks = [
        line["holdout_loss"] for line in RunDirectory(run).log_lines() if line["holdout_loss"] is not None
    ]
    assert len(looks) == 16 and looks[-1] < 0.4 * looks[0]  # 0.355; with packed weights 0.44


@pytest.mark.parametrize("recipe", ["dpo", "kto"])
def test_preferences(
    recipe: str, tiny_llm: Path, make_swift_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    """Both begin at the loss of an adapter that changes nothing, and end below it."""
    data = rows()
    for number, row in enumerate(data):
        row |= {"rejected_response": f"No. {number}."} if recipe == "dpo" else {"label": number % 3 > 0}
    run = make_swift_run(tiny_llm, data=data, recipe=recipe, epochs=4, max_steps=0)
    local.start(run, warm=warm)
    finish(run)
    assert losses(run)[0] == pytest.approx(0.6931 if recipe == "dpo" else 0.5, abs=1e-3)
    assert min(losses(run)) < 0.9 * losses(run)[0]
    assert f"every one of {22 if recipe == 'dpo' else 11} rows" in said(run)
    assert "rewards/chosen" in list(RunDirectory(run).log_lines())[-1]


def test_killed_held_cancelled_and_gone_on_from(
    tiny_llm: Path, make_swift_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    whole = make_swift_run(tiny_llm, "whole", max_steps=30)
    local.start(whole, warm=warm)
    finish(whole)

    run = make_swift_run(tiny_llm, "interrupted", max_steps=30)
    process = local.start(run, warm=warm)
    wait_for_step(run, 3)
    os.kill(process.pid, signal.SIGKILL)
    assert local.wait(run, 30).state is TrainState.DIED
    assert_gone(run)  # ms-swift does not outlive the process that watches it

    local.start(run, warm=warm)
    wait_for_step(run, 5)
    runners.hold(run)
    deadline = time.monotonic() + 10
    while local.poll(run).state is not TrainState.HOLDING:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = (run / "swift" / "events.jsonl").stat().st_size
    time.sleep(1)
    assert (run / "swift" / "events.jsonl").stat().st_size == before
    runners.cancel(run)
    assert local.wait(run, 60).state is TrainState.CANCELLED
    runners.release(run)
    assert_gone(run)

    local.start(run, warm=warm)
    finish(run)
    assert losses(run) == pytest.approx(losses(whole), abs=1e-6)


def assert_gone(run: Path) -> None:
    """No process works in the run's directory any more."""
    deadline = time.monotonic() + 10
    while left := list(processes_in(run)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def processes_in(run: Path) -> Iterator[int]:
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run).encode() in place.read_bytes():
                yield int(place.parent.name)
        except OSError:
            continue


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be decoded"),
        (lambda path: path.write_text("<html>404</html>"), "is not one of"),
    ],
    ids=["missing", "empty", "cut off", "html"],
)
def test_what_ms_swift_would_replace_by_another_row_is_named(
    spoil: Callable[[Path], Any],
    reason: str,
    tiny_vlm: Path,
    make_swift_run: Callable[..., Path],
    warm: WarmTrainer,
) -> None:
    data = rows(images=True)
    run = make_swift_run(tiny_vlm, data=data)
    (run / "images").mkdir()
    for row in data:
        Image.new("RGB", (40, 30)).save(run / row["images"][0])
    spoil(run / data[4]["images"][0])
    local.start(run, warm=warm)
    status = finish(run, TrainState.FAILED)
    assert status.exit_code == DataError.exit_code
    assert "train.jsonl:5" in status.error and reason in status.error
    assert not (run / "swift" / "events.jsonl").exists()  # ms-swift was never started


def test_an_error_of_ms_swift_is_told(tiny_llm: Path, tmp_path: Path, warm: WarmTrainer) -> None:
    """A parent adapter without its weights: ms-swift's own complaint comes through in a sentence."""
    run = tmp_path / "run"
    (run / "nowhere").mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    (run / "nowhere" / "adapter_config.json").write_text(json.dumps(config))
    (run / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    told = {"model": str(tiny_llm), "train": "train.jsonl", "train_engine": "swift", "threads": 1, "nice": 10}
    write_spec(run, TrainSpec.model_validate(told | {"adapter": {"init_from": "nowhere"}}))
    local.start(run, warm=warm)
    status = finish(run, TrainState.FAILED)
    assert "ms-swift ended with exit code 1" in status.error and "nowhere" in status.error
