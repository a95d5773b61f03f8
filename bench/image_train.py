"""Steps of the image side against diffusers' LoRA example and ComfyUI's TrainLoraNode, side by side.

One checkpoint in SD1.5's layout, the same pictures and captions, LoRA of rank 8 on the UNet's attention, batch 4,
float32, AdamW, one thread. CPU seconds of a step, medians; engines take turns, each in a process of its own.

    ours, first epoch     pictures and captions are encoded as they come up for the first time
    ours                  every later epoch: latents and text states come from the cache
    diffusers             the body of examples/text_to_image/train_text_to_image_lora.py, which encodes at every step
    ComfyUI               TrainLoraNode, given latents and conditions; it trains every layer's weight and bias, not
                          the attention alone, so its work is not equal: needs COMFYUI_DIR and COMFYUI_PYTHON

    python bench/image_train.py [--model FILE] [--pictures 12] [--side 128] [--rounds 2]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
BATCH, RANK, EPOCHS = 4, 8, 3
ENGINES = ("ours", "diffusers", "comfyui")


def make_pictures(folder: Path, count: int, side: int) -> None:
    chance = np.random.default_rng(1)
    rows = []
    for i in range(count):
        small = chance.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        rows.append({"messages": [{"role": "user", "content": f"cushion number {i}"}], "chosen": f"{i}.png"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ours(model: str, folder: Path, side: int) -> dict[str, list[float]]:
    import torch

    from comfyloop.train.image.batches import batches
    from comfyloop.train.image.objectives import denoising_loss
    from comfyloop.train.image.rows import read_rows
    from comfyloop.train.image.trainable import prepare
    from comfyloop.train.image.updates import updates_for
    from comfyloop.train.run.directory import RunDirectory
    from comfyloop.train.specs.image import ImageTrainSpec

    fields = {
        "model": model,
        "train": "train.jsonl",
        "dtype": "float32",
        "resolution": side,
        "caption_dropout": 0,
    }
    spec = ImageTrainSpec.model_validate({**fields, "adapter": {"r": RANK, "lora_alpha": RANK}})
    with tempfile.TemporaryDirectory() as run:
        trainable = prepare(RunDirectory(run), spec)
        rows, _ = read_rows(folder / "train.jsonl", pairs=False, max_image_pixels=10**8)
        updates = updates_for(trainable, spec)
        chance = random.Random(0)
        trainable.train()
        seconds: dict[str, list[float]] = {"ours, first epoch": [], "ours": []}
        torch.set_num_threads(1)
        for epoch in range(EPOCHS):
            for start in range(0, len(rows), BATCH):
                began = time.process_time()
                for batch in batches(trainable, rows[start : start + BATCH], spec, chance):
                    updates.backward(denoising_loss(trainable, batch, 0.0).mean())
                updates.update(1e-4)
                seconds["ours" if epoch else "ours, first epoch"].append(time.process_time() - began)
    return seconds


def diffusers(model: str, folder: Path, side: int) -> dict[str, list[float]]:
    """The example's training loop; the checkpoint is read by our loader, since its own needs a network."""
    import torch
    import torch.nn.functional as F
    from peft import LoraConfig

    from comfyloop.train.image import checkpoint

    torch.set_num_threads(1)
    loaded = checkpoint.load(Path(model))
    unet, vae, scheduler = loaded.denoiser, loaded.vae, loaded.scheduler
    tokenizer, text_encoder = loaded.text_encoders[0].tokenizer, loaded.text_encoders[0].model
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets)
    )
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-4)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().rstrip("\n").split("\n")]
    unet.train()
    seconds: list[float] = []
    for _ in range(EPOCHS):
        for start in range(0, len(rows), BATCH):
            began = time.process_time()
            part = rows[start : start + BATCH]
            pixels = []
            for row in part:
                picture = (
                    Image.open(folder / row["chosen"])
                    .convert("RGB")
                    .resize((side, side), Image.Resampling.BILINEAR)
                )
                pixels.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1)
            captions = [row["messages"][0]["content"] for row in part]
            ids = tokenizer(
                captions, max_length=77, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            with torch.no_grad():
                encoded = vae.encode(torch.stack(pixels))
                latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.sample()
                states = text_encoder(ids, return_dict=False)[0]
            latents = latents * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (len(latents),))
            noisy = scheduler.add_noise(latents, noise, timesteps)
            predicted = unet(noisy, timesteps, states, return_dict=False)[0]
            F.mse_loss(predicted.float(), noise.float(), reduction="mean").backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - began)
    return {"diffusers": seconds}


def run(engine: str, model: str, folder: Path, side: int) -> dict[str, list[float]]:
    arguments = ["--model", model, "--folder", str(folder), "--side", str(side)]
    command = [sys.executable, __file__, "--engine", engine, *arguments]
    environment, where = os.environ | {"OMP_NUM_THREADS": "1"}, None
    if engine == "comfyui":
        script = str((HERE / "peers" / "comfyui_lora.py").resolve())
        command = [os.environ["COMFYUI_PYTHON"], script, model, str(folder), str(RANK), str(BATCH)]
        environment |= {"PYTHONPATH": os.environ.get("COMFYUI_PYTHONPATH", "")}
        where = os.environ["COMFYUI_DIR"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=where)
    if result.returncode != 0:
        raise SystemExit(f"{engine} failed:\n{result.stderr[-2000:]}")
    seconds: dict[str, list[float]] = json.loads(result.stdout.strip().splitlines()[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="", help="a checkpoint in SD1.5's layout; default: the image starter"
    )
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--engine", choices=("ours", "diffusers"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pictures < 2 * BATCH:
        parser.error(f"--pictures is at least {2 * BATCH}: the first step of each engine only warms up")
    if args.engine:
        timings = {"ours": ours, "diffusers": diffusers}[args.engine](args.model, args.folder, args.side)
        print(json.dumps(timings))
        return
    if not args.model:
        from comfyloop.errors import StarterError
        from comfyloop.settings import Settings
        from comfyloop.starter import image

        try:
            args.model = str(image.ensure(Settings().cache_dir))
        except StarterError as error:
            print(f"{error} Or name a checkpoint with --model.", file=sys.stderr)
            return
    engines = [e for e in ENGINES if e != "comfyui" or {"COMFYUI_DIR", "COMFYUI_PYTHON"} <= os.environ.keys()]
    if "comfyui" not in engines:
        print(
            "COMFYUI_DIR and COMFYUI_PYTHON are not set: ComfyUI's TrainLoraNode is left out.",
            file=sys.stderr,
        )
    step_seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_pictures(folder, args.pictures, args.side)
        for _ in range(args.rounds):
            for engine in engines:
                for name, seconds in run(engine, str(Path(args.model).resolve()), folder, args.side).items():
                    step_seconds.setdefault(name, []).extend(seconds[1:])  # the first warms up
    report(step_seconds)


def report(step_seconds: dict[str, list[float]]) -> None:
    steady = statistics.median(step_seconds["ours"])
    results: dict[str, Any] = {}
    print("| engine | CPU seconds a step | against ours |\n|---|---|---|")
    for name, seconds in step_seconds.items():
        median = statistics.median(seconds)
        results[name] = {
            "seconds": round(median, 4),
            "steps": len(seconds),
            "ratio": round(median / steady, 2),
        }
        print(f"| {name} | {median:.3f} | {median / steady:.2f} |")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "image_train.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
