"""`comfyloop train --from-swift`: an ms-swift command line, trained by our own trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.conftest import REPOSITORY
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


def test_what_it_would_do_and_what_it_refuses(tiny_llm: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    script = tmp_path / "tune.sh"
    script.write_text("swift sft \\\n  --model MODEL --dataset data.jsonl \\\n  --galore_rank 8\n")
    said = comfyloop(
        "train", "--from-swift", str(script), "--model", str(tiny_llm), "--dry-run", cwd=tmp_path
    )
    assert said.returncode == 0
    assert "--galore_rank cannot be honoured" in said.stdout
    assert f'"model": "{tiny_llm}"' in said.stdout
    assert not (tmp_path / "run").exists()

    missing = comfyloop(
        "train", "--from-swift", f"swift sft --model {tiny_llm} --dataset no.jsonl", cwd=tmp_path
    )
    assert missing.returncode == 9 and "There is no data file no.jsonl" in missing.stderr
    some = comfyloop(
        "train", "--from-swift", f"swift sft --model {tiny_llm} --dataset data.jsonl#3", cwd=tmp_path
    )
    assert some.returncode == 9 and "drawn by chance" in some.stderr
