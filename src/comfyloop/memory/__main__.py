"""`python -m comfyloop.memory JSON`: looks at the machine and at a base model, and prints what the plan needs.

A process of its own, for it imports torch, which the service and the command line do not. JSON is an object of `model`
(a directory or hub id), `gpu` (bytes of a card that is not here; null: this machine), `pixels` (sizes of images),
`trains` (whether training counts) and `spec` (fields of a training spec). What goes wrong is one sentence on standard
error, and the exit code of its kind.
"""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import asdict, replace
from typing import Any

import torch
from PIL import Image

from comfyloop.errors import ComfyLoopError
from comfyloop.formats import Inline, Row, Turn
from comfyloop.media import data_urls
from comfyloop.models import devices
from comfyloop.models.counting import count
from comfyloop.models.memory import Machine, Step, Trained, of_size
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.models import Description, describe
from comfyloop.train.text.rehearsal import Footprint, footprint, peak_of_looking


def main(arguments: list[str]) -> int:
    try:
        print(json.dumps(look(json.loads(arguments[0]))))
    except ComfyLoopError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def look(question: dict[str, Any]) -> dict[str, Any]:
    """The device and the model, in figures. Raises ModelError where there is no such model."""
    spec = TrainSpec.model_validate({"model": question["model"], "train": "", **question["spec"]})
    device = devices.choose()
    dtype = devices.precision(device, spec.dtype)
    machine = devices.machine(device, dtype)
    if question["gpu"]:
        machine, dtype = of_size(machine, question["gpu"]), torch.bfloat16
    description = describe(question["model"])
    figures: dict[str, Any] = {"model": asdict(count(description.config, description.auto))}
    if question["trains"]:
        if not question["gpu"]:
            machine = _timed(machine, device, dtype, figures["model"]["hidden"], spec.threads)
        figures["trained"] = asdict(_trained(description, spec, machine, dtype, question["pixels"]))
    return figures | {"machine": asdict(machine)}


def _trained(
    description: Description, spec: TrainSpec, machine: Machine, dtype: torch.dtype, sizes: list[int]
) -> Trained:
    def of(*, fused: bool, checkpointed: bool = False) -> Footprint:
        how = spec.model_copy(update={"gradient_checkpointing": checkpointed})
        return footprint(description, how, dtype, machine.kind, fused=fused)

    def step(result: Footprint) -> Step:
        return Step(result.fixed, result.token, result.pair)

    fused = of(fused=True)
    images = {pixels: _seen(description, spec, pixels) for pixels in sizes} if description.sees_images else {}
    return Trained(
        weights=fused.trained,
        fused=step(fused),
        checkpointed=step(of(fused=True, checkpointed=True)),
        plain=step(of(fused=False)),
        image_tokens={pixels: tokens for pixels, (tokens, _) in images.items()},
        tower=peak_of_looking(description, images[max(images)][1], dtype) if images else 0,
    )


def _seen(description: Description, spec: TrainSpec, pixels: int) -> tuple[int, dict[str, torch.Tensor]]:
    """Tokens of an image of that many pixels, and what the processor gives the tower of it."""
    side = int(pixels**0.5)
    encoder = description.encoder(spec.model_copy(update={"max_pixels": pixels, "max_length": 2**31}))
    row = Row(
        turns=(Turn("user", (None, "?")), Turn("assistant", ("!",))),
        images=(_blank(side),),
        line=1,
        id="blank",
    )
    example = encoder.encode(row)
    return example.image_tokens, example.seen()


def _blank(side: int) -> Inline:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (127, 127, 127)).save(file, "PNG")
    return Inline(data_urls.encode(file.getvalue()))


def _timed(machine: Machine, device: torch.device, dtype: torch.dtype, width: int, threads: int) -> Machine:
    """The same with its speed: of a product as a layer has them."""
    if threads:
        torch.set_num_threads(threads)
    a, b = (torch.randn(n, width, device=device).to(dtype) for n in (1024, 4 * width))
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        (a @ b.T)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return replace(machine, speed=2 * 1024 * width * 4 * width / best)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
