"""Recipes as a person starts them: from the command line, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyloop.train.run.directory import RunDirectory, TrainState
from tests.integration.train.runs import THINGS


def data(path: Path, **more: Any) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Write a caption for a {thing}."},
                {"role": "assistant", "content": f"Meet the {thing}: made slowly."},
            ],
            **more,
        }
        for thing in THINGS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def comfyloop_train(*options: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "comfyloop", "train", *map(str, options), "--set", "threads=1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


@pytest.mark.slow
def test_a_preference_run_from_the_command_line(tiny_llm: Path, tmp_path: Path) -> None:
    """Ctrl-C stops it within a step; the same command goes on; another spec is refused there."""
    pairs = data(tmp_path / "pairs.jsonl", rejected_response="A thing!")
    options = [pairs, "--recipe", "dpo", "--model", tiny_llm, "--output", tmp_path / "run",
               "--set", "max_steps=3000", "--set", "epochs=3000", "--set", "save_steps=5"]  # fmt: skip
    run = RunDirectory(tmp_path / "run")
    first = comfyloop_train(*options)
    deadline = time.monotonic() + 120
    while not any(line["step"] >= 3 for line in run.log_lines()):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    trainer = run.read_status().pid
    os.kill(trainer, signal.SIGINT)  # what a terminal sends to both of them
    first.send_signal(signal.SIGINT)
    assert "start the run again to go on" in ended(first, 143)
    stopped = run.read_status().step
    assert stopped >= 3

    misfit = ended(comfyloop_train(*options, "--set", "preference.beta=0.5"), 4)
    assert "holds a run of another spec" in misfit

    again = comfyloop_train(*options)
    while not any(line["step"] > stopped for line in run.log_lines()):
        assert time.monotonic() < deadline + 60 and again.poll() is None
        time.sleep(0.02)
    run.cancel_file.touch()
    ended(again, 130)
    assert run.read_status().state is TrainState.CANCELLED
    assert [line["step"] for line in run.log_lines()] == list(range(1, run.read_status().step + 1))
    assert "rewards/margins" in list(run.log_lines())[-1]


def test_what_a_file_lacks_for_its_recipe_is_said(tiny_llm: Path, tmp_path: Path) -> None:
    output = ended(
        comfyloop_train(data(tmp_path / "plain.jsonl"), "--recipe", "kto", "--model", tiny_llm,
                        "--output", tmp_path / "run"), 9
    )  # fmt: skip
    assert "plain.jsonl:1" in output and "it has no label" in output and "11 of 11 rows" in output
    assert "no field 'colour'" in ended(comfyloop_train(tmp_path / "x", "--set", "colour=3"), 2)


@pytest.mark.slow
def test_qlora_runs_here_and_its_adapter_loads_in_plain_peft(tiny_llm: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes: pip install 'comfyloop[quant]'")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = ended(
        comfyloop_train(
            data(tmp_path / "train.jsonl"), "--model", tiny_llm, "--output", tmp_path / "run",
            "--holdout", data(tmp_path / "holdout.jsonl"), "--set", "quant_method=bnb",
            "--set", "dtype=float32", "--set", "max_steps=8", "--set", "learning_rate=0.02",
        )
    )  # fmt: skip
    assert "training 16,384 of 117,632 parameters" in output  # four bits are counted as what they stand for
    lines = list(RunDirectory(tmp_path / "run").log_lines())
    assert lines[-1]["holdout_loss"] < 0.7 * lines[0]["holdout_loss"]
    base = AutoModelForCausalLM.from_pretrained(tiny_llm)
    peft = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    row = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False).removesuffix("\n")
    prompt = tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    labels = ids.clone()
    labels[:, : len(tokenizer(prompt, add_special_tokens=False)["input_ids"])] = -100
    with torch.no_grad():
        loss = float(peft(input_ids=ids, labels=labels).loss)
        with peft.disable_adapter():
            before = float(peft(input_ids=ids, labels=labels).loss)
    # trained on weights of four bits, it is right on the whole ones too, and near what the run saw
    assert loss < 0.75 * before
    assert loss == pytest.approx(lines[-1]["holdout_loss"], rel=0.25)


PROCESSORS = {
    "AVX2": (True, {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "AVX512-BF16": (torch.cpu._is_avx512_bf16_supported(), {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}),
    "AMX": (torch.cpu._is_amx_tile_supported(), {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_qlora_learns_the_same_on_each_kind_of_processor(
    processor: str, tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a processor lacks is skipped by name; the kinds below its own it can play."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quant`)")
    there, environment = PROCESSORS[processor]
    if not there:
        pytest.skip(f"this processor has no {processor}")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended(
        comfyloop_train(
            data(tmp_path / "train.jsonl"), "--model", tiny_llm, "--output", tmp_path / "run",
            "--holdout", data(tmp_path / "holdout.jsonl"), "--set", "quant_method=bnb",
            "--set", "dtype=bfloat16", "--set", "max_steps=24", "--set", "learning_rate=0.02",
        )
    )  # fmt: skip
    lines = list(RunDirectory(tmp_path / "run").log_lines())
    looks = [line["holdout_loss"] for line in lines if line["holdout_loss"] is not None]
    assert [looks[0], looks[-1]] == pytest.approx([7.44, 0.755], rel=0.1)
