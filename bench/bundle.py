"""Exporting and importing a bundle of 100 MB against copying its weights with a hash: `python bench/bundle.py`.

Both write to the same disk and push it there (fsync). What is measured is packing, and verifying and unpacking, without
HTTP. Best of five, since what else the machine does only slows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from comfyloop.platforms import sync
from comfyloop.records import Project, Version
from comfyloop.registry import base_model, bundle, contents
from comfyloop.registry.archive import CHUNK


def make(folder: Path, megabytes: int) -> tuple[Path, Path]:
    """A base model and a LoRA of so many megabytes on it."""
    layers, width = 4, 1024
    rank = megabytes * 2**20 // (layers * 2 * width * 4)
    rng = np.random.default_rng(0)
    model, adapter = folder / "model", folder / "text"
    model.mkdir()
    adapter.mkdir()
    names = [f"model.layers.{n}.self_attn.q_proj" for n in range(layers)]
    save_file(
        {f"{name}.weight": np.zeros((width, width), np.float16) for name in names}, model / "m.safetensors"
    )
    (model / "config.json").write_text('{"model_type": "llama"}')
    tensors = {}
    for name in names:
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.random((rank, width), np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = rng.random((width, rank), np.float32)
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "bias": "none"}))
    return model, adapter


def copied(source: Path, target: Path) -> None:
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            writer.write(chunk)
    sync(target)
    sync(target.parent)


def best(do: Callable[[], object], undo: Callable[[], object], times: int = 5) -> tuple[float, float]:
    """Seconds of wall clock, and of processor time, which says more on a busy machine."""
    wall, spent = [], []
    for _ in range(times):
        undo()
        begun, began = time.perf_counter(), time.process_time()
        do()
        wall.append(time.perf_counter() - begun)
        spent.append(time.process_time() - began)
    return min(wall), min(spent)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=int, default=100)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, adapter = make(folder, arguments.megabytes)
        place = str(model)
        version = Version(project="acme", number=1, text_adapter=str(adapter))
        project = Project(name="acme", base_model=place)
        base = base_model.text_base(place, place)
        file, into, copy = folder / "x.comfyloop", folder / "in", folder / "copy"

        def export() -> None:
            manifest, pieces = contents.gather(version, project, str, publisher="bench")
            bundle.write(manifest, pieces, file, folder / "home")

        def take() -> None:
            bundle.unpack(file, into, text_base=base, image_base=None, text_place=place)

        weights = adapter / "adapter_model.safetensors"
        plain = best(lambda: copied(weights, copy), lambda: copy.unlink(missing_ok=True))
        out = best(export, lambda: file.unlink(missing_ok=True))
        back = best(take, lambda: shutil.rmtree(into, ignore_errors=True))
        size = weights.stat().st_size / 2**20
        for n, clock in enumerate(("wall clock", "processor time")):
            print(
                f"{size:.0f} MB, {clock}: copy with SHA-256 {plain[n]:.3f} s; export {out[n]:.3f} s, "
                f"{plain[n] / out[n]:.2f}x of copying; import {back[n]:.3f} s, {plain[n] / back[n]:.2f}x"
            )


if __name__ == "__main__":
    main()
