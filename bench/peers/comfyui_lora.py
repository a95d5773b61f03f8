"""ComfyUI's own TrainLoraNode on a checkpoint and pictures; prints the CPU seconds of its steps.

Run by ComfyUI's own Python, in its folder:  python comfyui_lora.py CHECKPOINT FOLDER RANK BATCH
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))
checkpoint, folder, rank, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sys.argv = [sys.argv[0], "--cpu"]
from comfy.cli_args import args  # noqa: E402

args.cpu = True
import comfy.sd  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_train import TrainLoraNode  # noqa: E402
from PIL import Image  # noqa: E402

STEPS = 6
torch.set_num_threads(1)
model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint)
rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().rstrip("\n").split("\n")]
pixels = np.stack([np.array(Image.open(folder / row["chosen"]).convert("RGB")) for row in rows])
conditions = []
with torch.no_grad():
    latents = vae.encode(torch.from_numpy(pixels).float() / 255)
    for row in rows:
        tokens = clip.tokenize(row["messages"][0]["content"])
        states, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        conditions.append([states, {"pooled_output": pooled}])
marks: list[float] = []


class Clock(torch.optim.AdamW):
    def step(self, *arguments: Any, **named: Any) -> Any:
        out = super().step(*arguments, **named)
        marks.append(time.process_time())
        return out


plain = torch.optim.AdamW
setattr(torch.optim, "AdamW", Clock)  # noqa: B010 - the trainer names it there
TrainLoraNode().train(
    model, {"samples": latents}, conditions, batch, STEPS, 1, 1e-4, rank, "AdamW", "MSE", 0, "fp32", "fp32", "LoRA",
    False, "[None]",
)  # fmt: skip
print(json.dumps({"ComfyUI": [b - a for a, b in itertools.pairwise(marks)]}))
