"""Real training processes on tiny models: killed, held, cancelled, refused, resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyloop.errors import Conflict, InvalidInput, NotFound
from comfyloop.settings import Settings
from comfyloop.train import runners
from comfyloop.train.prefork.trainer import WarmTrainer
from comfyloop.train.run.directory import RunDirectory, TrainState
from comfyloop.train.runners import local
from tests.integration.train.runs import THINGS, curve, finish, rows, wait_until_held


def test_a_run_and_its_adapter(tiny_llm: Path, make_run: Callable[..., Path]) -> None:
    """The log is whole, the loss falls, and the adapter in plain PEFT is the model that was trained."""
    run = make_run(tiny_llm, holdout="holdout.jsonl", learning_rate=0.02)
    local.start(run)
    lines = list(local.follow(run))
    status = finish(run)
    assert [line["step"] for line in lines] == list(range(9))
    assert lines[0]["loss"] is None
    assert lines[8]["holdout_loss"] < 0.7 * lines[0]["holdout_loss"]
    assert 0 < status.trainable_parameters < status.total_parameters
    assert list((run / "tb").glob("events.out.tfevents.*"))

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llm), run / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    text = tokenizer.apply_chat_template(rows()[0]["messages"], tokenize=False)
    prompt = tokenizer.apply_chat_template(
        rows()[0]["messages"][:1], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text.removesuffix("\n"), return_tensors="pt", add_special_tokens=False)["input_ids"]
    labels = ids.clone()
    labels[:, : len(tokenizer(prompt, add_special_tokens=False)["input_ids"])] = -100
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=labels).loss)
    assert loss == pytest.approx(lines[8]["holdout_loss"], abs=1e-5)


def test_killed_at_random_steps_and_resumed_gives_the_same_curve(
    tiny_llm: Path, make_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    values: dict[str, Any] = {
        "holdout": "holdout.jsonl", "max_steps": 40, "epochs": 20, "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2, "adapter": {"lora_dropout": 0.1},
    }  # fmt: skip
    whole = make_run(tiny_llm, "whole", **values)
    local.start(whole, warm=warm)
    finish(whole)
    killed = make_run(tiny_llm, "killed", **values)
    chance = random.Random(7)
    kills = 0
    for bound in sorted(chance.sample(range(3, 36), 2)):
        process = local.start(killed, warm=warm)
        for line in local.follow(killed, interval=0.002):
            if line["step"] >= bound:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
        status = local.wait(killed, timeout=60)
        assert status.state in {TrainState.DIED, TrainState.SUCCEEDED}
        assert status.state is TrainState.SUCCEEDED or "goes on from its last checkpoint" in status.error
    local.start(killed, warm=warm)
    finish(killed)
    assert kills == 2
    assert curve(killed) == curve(whole)
    weights = "adapter/adapter_model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    assert len(list((killed / "checkpoints").iterdir())) <= 2


@pytest.mark.parametrize("warm", [False, True])
def test_a_trainer_that_hangs_is_ended_by_cancel(
    tiny_llm: Path, make_run: Callable[..., Path], tmp_path: Path, warm: bool
) -> None:
    run = make_run(tiny_llm, max_steps=100_000, epochs=100_000)
    settings = Settings(home=tmp_path / "home", cancel_seconds=1.5, warm_trainer=warm)
    started = runners.Runners(settings)
    try:
        if warm:
            started.prepare(str(tiny_llm), "float32")
        started.start(run)
        deadline = time.monotonic() + 120
        while started.poll(run).step < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(started.poll(run).pid, signal.SIGSTOP)
        runners.cancel(run)
        runners.cancel(run)
        assert not started.poll(run).state.ended
        time.sleep(1.6)
        status = started.poll(run)
        assert status.state is TrainState.CANCELLED and "had not stopped" in status.error
        assert not RunDirectory(run).is_locked()
        assert started.poll(run).state is TrainState.CANCELLED
    finally:
        started.close()


def test_hold_release_cancel_and_go_on(
    tiny_llm: Path, make_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    run = make_run(tiny_llm, max_steps=100_000, epochs=100_000, nice=12)
    process = local.start(run, warm=warm)
    with pytest.raises(Conflict, match="already being worked on"):
        local.start(run, warm=warm)
    next(line for line in local.follow(run, interval=0.01) if line["step"] >= 3)
    group = Path(f"/proc/{process.pid}/autogroup")
    if group.exists():  # where Linux shares the processor out among sessions, this one stands back
        assert group.read_text().split()[-1] == "12"
    runners.hold(run)
    held = wait_until_held(run)
    time.sleep(0.5)
    assert local.poll(run).step == held.step
    runners.release(run)
    next(line for line in local.follow(run, interval=0.01) if line["step"] >= held.step + 3)
    runners.cancel(run)
    began = time.monotonic()
    status = finish(run, TrainState.CANCELLED)
    assert time.monotonic() - began < 3
    assert status.exit_code == 130
    assert not (run / "adapter").exists()
    newest = max(int(p.name.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*"))
    assert newest == status.step

    again = local.start(run, warm=warm)  # a person changed their mind: it goes on from where it was
    line = next(line for line in local.follow(run, interval=0.01) if line["step"] > status.step)
    assert line["step"] == status.step + 1
    os.kill(again.pid, signal.SIGTERM)
    assert local.wait(run, timeout=30).state is TrainState.DIED


@pytest.mark.parametrize("checkpointing", [False, True])
def test_images(
    tiny_vlm: Path, make_run: Callable[..., Path], warm: WarmTrainer, checkpointing: bool
) -> None:
    run = make_run(tiny_vlm, data=[*rows(images=True), *rows()[:3]], gradient_checkpointing=checkpointing)
    (run / "images").mkdir()
    for i, thing in enumerate(THINGS):
        Image.new("RGB", (40, 30), (20 * i, 200 - 10 * i, 90)).save(run / "images" / f"{thing}.png")
    local.start(run, warm=warm)
    finish(run)
    losses = [line["loss"] for line in curve(run)]
    assert losses[-1] < losses[0]
    names = json.loads((run / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert "language_model" in names

    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny_vlm), run / "adapter")
    have = {n.replace(".default", "") for n, _ in model.named_parameters() if "lora_" in n}
    assert have == set(load_file(run / "adapter" / "adapter_model.safetensors"))


def test_bad_lines_are_named_before_a_step(
    tiny_vlm: Path, make_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    def asked(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]

    bad = [
        *rows()[:2],
        "{broken",
        {**rows(images=True)[0], "id": "no-file"},
        {"id": "too-long", "messages": asked("long " * 600)},
        {"id": "mute", "messages": asked("")},
    ]
    run = make_run(tiny_vlm, data=bad)
    local.start(run, warm=warm)
    status = finish(run, TrainState.FAILED)
    assert status.exit_code == 9
    for named in ("train.jsonl:3", "train.jsonl:4 (sample no-file)", "train.jsonl:5 (sample too-long)",
                  "train.jsonl:6 (sample mute)", "4 of 6 rows"):  # fmt: skip
        assert named in status.error
    assert not curve(run)

    rest = make_run(tiny_vlm, "rest", data=bad, skip_bad=True, max_bad_share=0.7, max_steps=1)
    local.start(rest, warm=warm)
    finish(rest)
    assert "left out train.jsonl:6 (sample mute)" in (rest / "train.out").read_text()


def test_a_held_run_gives_its_memory_back_and_goes_on_bit_for_bit(
    tiny_llm: Path, make_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    values: dict[str, Any] = {
        "holdout": "holdout.jsonl", "max_steps": 12, "epochs": 20, "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2, "adapter": {"lora_dropout": 0.1},
    }  # fmt: skip
    whole = make_run(tiny_llm, "whole", **values)
    local.start(whole, warm=warm)
    finish(whole)
    held = make_run(tiny_llm, "held", step_aside_after=0.01, **values)
    runners.hold(held)  # from the beginning on, and later between two micro-steps
    local.start(held, warm=warm)
    for step in (0, 3):
        deadline = time.monotonic() + 60
        while not (status := local.poll(held)).freed_bytes:
            assert not status.state.ended and time.monotonic() < deadline, status
            if status.step >= step and not RunDirectory(held).hold_file.exists():
                runners.hold(held)
            time.sleep(0.01)
        assert RunDirectory(held).parked_file.exists()
        runners.release(held)
        deadline = time.monotonic() + 60
        while local.poll(held).freed_bytes:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert finish(held).memory_bytes > 0
    assert not RunDirectory(held).parked_file.exists()
    assert curve(held) == curve(whole)
    weights = "adapter/adapter_model.safetensors"
    assert (held / weights).read_bytes() == (whole / weights).read_bytes()


def test_going_on_from_a_parent(tiny_llm: Path, make_run: Callable[..., Path], warm: WarmTrainer) -> None:
    first = make_run(tiny_llm, "first", holdout="holdout.jsonl", learning_rate=0.02)
    local.start(first, warm=warm)
    finish(first)
    second = make_run(
        tiny_llm, "second", holdout="holdout.jsonl", adapter={"init_from": str(first / "adapter")}
    )
    local.start(second, warm=warm)
    finish(second)
    assert curve(second)[0]["holdout_loss"] == pytest.approx(curve(first)[-1]["holdout_loss"], abs=1e-5)
    misfit = make_run(
        tiny_llm, "misfit", adapter={"init_from": str(first / "adapter"), "r": 4, "lora_alpha": 16}
    )
    local.start(misfit, warm=warm)
    assert "r = 8 and this run asks for 4" in finish(misfit, TrainState.FAILED).error


def test_other_data_is_not_gone_on_with(
    tiny_llm: Path, make_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    run = make_run(tiny_llm, max_steps=100_000, epochs=100_000, nice=12)
    process = local.start(run, warm=warm)
    next(line for line in local.follow(run, interval=0.01) if line["step"] >= 4)
    os.kill(process.pid, signal.SIGKILL)
    local.wait(run, timeout=30)
    (run / "train.jsonl").write_text("\n".join(json.dumps(r) for r in rows()[:5]))
    local.start(run, warm=warm)
    assert "belongs to another spec or other data" in finish(run, TrainState.FAILED).error


def test_a_torn_checkpoint_is_passed_over(
    tiny_llm: Path, make_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    run = make_run(tiny_llm, max_steps=60, epochs=60)
    process = local.start(run, warm=warm)
    next(line for line in local.follow(run, interval=0.002) if line["step"] >= 7)
    os.kill(process.pid, signal.SIGKILL)
    local.wait(run, timeout=30)
    steps = sorted(int(p.name.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*"))
    newest = run / "checkpoints" / f"step-{steps[-1]}" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    local.start(run, warm=warm)
    finish(run)
    assert f"steps {steps[-2]} to 60" in (run / "train.out").read_text()
    assert [line["step"] for line in curve(run)] == list(range(1, 61))


def test_what_cannot_start(
    tiny_llm: Path, tmp_path: Path, make_run: Callable[..., Path], warm: WarmTrainer
) -> None:
    with pytest.raises(NotFound, match=r"no spec\.json"):
        local.start(tmp_path)
    (tmp_path / "spec.json").write_text('{"model": "x", "train": "t", "learning_rate": -1, "colour": 3}')
    with pytest.raises(InvalidInput, match=r"learning_rate: .*; colour: "):
        local.start(tmp_path)
    missing = make_run(tmp_path / "no-model", "missing")
    toothless = tmp_path / "toothless"
    toothless.mkdir()
    for name in ("config.json", "model.safetensors"):
        (toothless / name).write_bytes((tiny_llm / name).read_bytes())
    bare = make_run(toothless, "bare")
    small = make_run(tiny_llm, "small", memory_gb=0.3, max_steps=100_000, epochs=100_000)
    for run in (missing, bare, small):
        local.start(run, warm=warm)
    assert "There is no model directory" in finish(missing, TrainState.FAILED).error
    assert "has no usable tokenizer" in finish(bare, TrainState.FAILED).error
    limited = finish(small, TrainState.FAILED)
    assert "more than its limit of 0.3 GiB" in limited.error
    assert limited.exit_code == 21
