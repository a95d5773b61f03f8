"""What memory training takes: with gradient checkpointing against without, and the weights of QLoRA against bf16.

Each run is a process of its own, `python -m comfyloop.train`, with the same samples in the same order; what is
compared is the most memory that it ever held (as the kernel counts it, libraries and weights with it) and its
loss, which must be the same. Exit code 1 when a ratio is above its bound.

    python bench/memory.py [--model starter] [--samples 4] [--tokens 256] [--steps 2]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from comfyloop.service import model_path
from comfyloop.settings import Settings
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.specs.files import write_spec
from comfyloop.train.specs.text import TrainSpec

CHECKPOINTING = 0.65
QLORA = 0.45

WEIGHTS = """
import sys
from comfyloop.train.text.models import describe, load
from comfyloop.train.specs.text import TrainSpec

spec = TrainSpec.model_validate_json(sys.argv[1])
size = 0
for parameter in load(spec, describe(spec.model), None).whole.parameters():
    if not parameter.requires_grad:
        state = getattr(parameter, "quant_state", None)
        more = (state.absmax, state.offset, state.state2.absmax) if state is not None else ()
        size += parameter.nbytes + sum(tensor.nbytes for tensor in more)
print(size)
"""


def rows(samples: int, tokens: int) -> list[dict[str, Any]]:
    words = ["a", "mug", "of", "red", "clay", "stands", "on", "the", "table", "and", "waits", "for", "tea"]
    return [
        {
            "messages": [
                {
                    "role": "user",
                    "content": " ".join(words[(i + j) % len(words)] for j in range(tokens - 80)),
                },
                {
                    "role": "assistant",
                    "content": " ".join(words[(i + 3 * j) % len(words)] for j in range(50)),
                },
            ]
        }
        for i in range(samples)
    ]


def train(spec: dict[str, Any], data: list[dict[str, Any]], folder: Path) -> tuple[float, float, float]:
    """Most memory in MB, CPU seconds, and the last loss of a run."""
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    write_spec(folder, TrainSpec.model_validate(spec))
    with (folder / "train.out").open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "comfyloop.train", str(folder)], stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit((folder / "train.out").read_text())
    last = list(RunDirectory(folder).log_lines())[-1]
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime, last["loss"]


def weights(spec: dict[str, Any]) -> float:
    """MB of the weights that are not trained, as they lie in memory."""
    spec_json = TrainSpec.model_validate(spec).model_dump_json()
    result = subprocess.run(
        [sys.executable, "-c", WEIGHTS, spec_json], check=True, capture_output=True, text=True
    )
    return int(result.stdout.split()[-1]) / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="starter")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    spec = {
        "model": model_path(Settings(), options.model), "train": "train.jsonl", "dtype": "bfloat16",
        "max_steps": options.steps, "per_device_train_batch_size": options.samples, "threads": 1, "nice": 0,
    }  # fmt: skip
    data = rows(options.samples, options.tokens)
    failed = False
    with tempfile.TemporaryDirectory() as home:
        plain = train(spec, data, Path(home) / "plain")
        less = train(spec | {"gradient_checkpointing": True}, data, Path(home) / "less")
    ratio = less[0] / plain[0]
    print(
        f"{options.model}, {options.samples} samples of about {options.tokens} tokens, bf16, LoRA on q,k,v,o"
    )
    print(f"{'':28}{'peak MB':>10}{'CPU s':>10}{'loss':>10}")
    for name, (peak, seconds, loss) in (("kept activations", plain), ("gradient checkpointing", less)):
        print(f"{name:28}{peak:10.0f}{seconds:10.1f}{loss:10.4f}")
    print(f"checkpointing / not: {ratio:.2f}x the memory, {less[1] / plain[1]:.2f}x the CPU time")
    if ratio > CHECKPOINTING or abs(less[2] - plain[2]) > 0.01:
        print(f"  above {CHECKPOINTING}, or another loss")
        failed = True

    if importlib.util.find_spec("bitsandbytes") is None:
        print("QLoRA is left out: bitsandbytes is not installed (pip install 'comfyloop[quant]').")
        return int(failed)
    full, quantised = weights(spec), weights(spec | {"quant_method": "bnb"})
    print(f"frozen weights: bf16 {full:.0f} MB, NF4 with double quantisation {quantised:.0f} MB")
    print(f"QLoRA / bf16: {quantised / full:.2f}x")
    if quantised / full > QLORA:
        print(f"  above {QLORA}")
        failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
