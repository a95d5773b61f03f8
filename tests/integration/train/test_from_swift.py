"""`comfyloop train --from-swift`: an ms-swift command line, trained by our own trainer."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from comfyloop.cli import main
from tests.conftest import REPOSITORY
from tests.families import make_family
from tests.integration.train.runs import rows


def comfyloop(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "COMFYLOOP_HOME": str(cwd / "home")}
    return subprocess.run(
        [sys.executable, "-m", "comfyloop", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


class Said(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """`comfyloop ARGUMENTS` in this process, for commands that start no training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMFYLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # which the command sets: it is to go with this test

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["comfyloop", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


def test_the_old_command_trains(tiny_vlm: Path, tmp_path: Path) -> None:
    """Old flags, old rows (query and response), images relative to where the command is given."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "data").mkdir()
    old = []
    for number in range(6):
        Image.new("RGB", (40, 30), (40 * number, 90, 200)).save(tmp_path / "pictures" / f"{number}.png")
        picture = f"pictures/{number}.png"
        old.append({"query": "<image>What is this?", "response": f"Picture {number}.", "images": [picture]})
    (tmp_path / "data" / "old.json").write_text(json.dumps(old))
    command = (
        f"swift sft --model_type qwen-vl-chat --model_id_or_path {tiny_vlm} --train_dataset data/old.json "
        "--lora_rank 4 --lora_alpha 8 --use_gradient_checkpointing False --max_image_pixels 200704 --dtype fp32 "
        "--num_train_epochs 2 --batch_size 3 --gradient_accumulation_steps 1 --learning_rate 1e-2 --deepspeed zero2"
    )
    done = comfyloop("train", "--from-swift", command, "--output", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"]["state"] == "succeeded" and told["status"]["step"] == 4
    assert told["spec"]["adapter"]["r"] == 4 and told["spec"]["max_pixels"] == 200704
    assert list(told["cannot_be_honoured"]) == ["deepspeed"]
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_what_it_would_do_and_what_it_refuses(
    tiny_llm: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    script = tmp_path / "tune.sh"
    script.write_text("swift sft \\\n  --model MODEL --dataset data.jsonl \\\n  --galore_rank 8\n")
    said = command("train", "--from-swift", str(script), "--model", str(tiny_llm), "--dry-run")
    assert said.returncode == 0
    assert "--galore_rank cannot be honoured" in said.stdout
    assert f'"model": "{tiny_llm}"' in said.stdout
    assert not (tmp_path / "run").exists()

    missing = command("train", "--from-swift", f"swift sft --model {tiny_llm} --dataset no.jsonl")
    assert missing.returncode == 3 and "There is no data file no.jsonl" in missing.stderr
    some = command("train", "--from-swift", f"swift sft --model {tiny_llm} --dataset data.jsonl#3")
    assert some.returncode == 9 and "drawn by chance" in some.stderr


ARTICLE = (
    "swift sft --model_type qwen-vl-chat --train_dataset sample_dataset.jsonl --lora_rank 64 --lora_alpha 16 "
    "--use_4bit True --quantization_bit 4 --output_dir output_qlora --num_train_epochs 3 "
    "--per_device_train_batch_size 1 --gradient_accumulation_steps 8 --learning_rate 1e-4"
)
# `test_swift_flags.py` has many more forms, and shows that each asks for the same run.
FORMS = {
    "flattened": ARTICLE.replace(" --", " \\ --"),
    "script": "#!/bin/sh\n" + ARTICLE.replace(" --", " \\\n  --") + "\n",
}


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("qwen2_vl", tmp_path_factory.mktemp("models") / "qwen2-vl")


def article_s_rows(folder: Path) -> None:
    """What the article trains on: questions about pictures, and answers."""
    lines = []
    for number, thing in enumerate(("mug", "lamp", "bowl", "vase")):
        Image.new("RGB", (40, 30), (60 * number, 90, 200)).save(folder / f"{thing}.png")
        turns = [
            {"from": "user", "value": "<image>Write a caption."},
            {"from": "assistant", "value": f"A {thing}."},
        ]
        lines.append(json.dumps({"conversations": turns, "images": [f"{thing}.png"]}) + "\n")
    (folder / "sample_dataset.jsonl").write_text("".join(lines))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra `quant`)"
)
@pytest.mark.parametrize("form", FORMS)
def test_the_article_s_command_runs_from_start_to_end(form: str, qwen2_vl: Path, tmp_path: Path) -> None:
    article_s_rows(tmp_path)
    command = FORMS[form]
    if form == "script":
        (tmp_path / "tune.sh").write_text(command)
        command = "tune.sh"
    done = comfyloop("train", "--from-swift", command, "--model", str(qwen2_vl), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = tmp_path / "output_qlora"
    config = json.loads((result / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (64, 16)
    assert json.loads((result / "status.json").read_text())["state"] == "succeeded"
    assert not (tmp_path / "run").exists()
    assert "--use_4bit: quant_method = bnb, quant_bits = 4" in done.stdout
    for flag in (word for word in ARTICLE.split() if word.startswith("--")):
        assert f"{flag}: " in done.stdout or f"{flag} makes no difference" in done.stdout, flag


def test_what_a_run_needs_is_said_before_it_starts(
    qwen2_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Said]
) -> None:
    """Without bitsandbytes: by --dry-run, by the command itself, by DATA with --set, and by doctor."""
    article_s_rows(tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    missing = "quant_method = bnb needs bitsandbytes, which is not installed. pip install 'comfyloop[quant]'"
    swift = ("train", "--from-swift", ARTICLE, "--model", str(qwen2_vl))
    dry = command(*swift, "--dry-run")
    assert dry.returncode == 0 and missing in " ".join(dry.stdout.split())
    for words in (swift, ("train", "sample_dataset.jsonl", "--set", "quant_method=bnb")):
        done = command(*words)
        assert done.returncode == 8 and missing in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "output_qlora").exists() and not (tmp_path / "run").exists()
    monkeypatch.setenv("COMFYLOOP_QUANT_METHOD", "bnb")
    doctor = command("doctor")
    assert missing in " ".join(doctor.stdout.split()) and doctor.returncode == 1
