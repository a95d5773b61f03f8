"""What serving, training and drawing take of this machine, or of another one: looked at in a process of its own, which
may import torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from comfyloop.errors import ModelError
from comfyloop.files import there
from comfyloop.models import memory as arithmetic
from comfyloop.models.figures import Figures
from comfyloop.models.memory import MIB, Image, Machine, MemoryPlan, Step, Trained, Way
from comfyloop.serve.engines.kinds.embedded import KEEPS_MIB, KEEPS_MIB_ON_CPU
from comfyloop.service import model_path
from comfyloop.settings import IMAGE_STARTER, Settings
from comfyloop.stable_diffusion.header import read_header
from comfyloop.train.specs.text import TrainSpec

PATIENCE_SECONDS = 600


def plan_of(settings: Settings, gpu: int | None = None) -> MemoryPlan:
    """What the base model that is set takes, with what else is set.

    Args:
        gpu: Bytes of a card to plan for; None: this machine.

    Raises:
        ModelError: There is no such model, or it is none that trains.
    """
    name = model_path(settings, settings.model)
    spec = TrainSpec.from_settings(settings, model=name, train="", holdout=None)
    way = Way(
        settings.quant_method, settings.batch_size, settings.gradient_checkpointing, settings.max_pixels
    )
    figures = look(name, gpu=gpu, pixels=arithmetic.sizes_of_images(way), trains=True, spec=spec)
    machine, trained_figures = Machine(**figures["machine"]), figures["trained"]
    trained = Trained(
        trained_figures["weights"],
        Step(**trained_figures["fused"]),
        Step(**trained_figures["checkpointed"]),
        Step(**trained_figures["plain"]),
        {int(pixels): tokens for pixels, tokens in trained_figures["image_tokens"].items()},
        trained_figures["tower"],
    )
    return arithmetic.make(
        Figures(**figures["model"]),
        machine,
        way,
        trained,
        requests=settings.max_batch,
        kept=(KEEPS_MIB + (KEEPS_MIB_ON_CPU if machine.kind == "cpu" else 0)) * MIB,
        four_bits=settings.engine == "embedded" and settings.engine_quant_method == "bnb",
        passes=settings.trigger_samples * spec.epochs / (1 - spec.replay_share),
        image=_image(settings),
    )


def look(
    model: str, *, gpu: int | None = None, pixels: list[int] | None = None, trains: bool, spec: TrainSpec
) -> dict[str, Any]:
    """What `python -m comfyloop.memory` finds.

    Raises:
        ModelError: There is no such model, or it is none that trains.
    """
    fields = spec.model_dump(mode="json", include={"adapter", "dtype", "max_pixels", "threads"})
    question = {"model": model, "gpu": gpu, "pixels": pixels or [], "trains": trains, "spec": fields}
    result = subprocess.run(
        [sys.executable, "-m", "comfyloop.memory", json.dumps(question)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=PATIENCE_SECONDS,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise ModelError(f"No plan can be made of {model}: {lines[-1]}")
    return json.loads(result.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _image(settings: Settings) -> Image | None:
    """The image model that is set, counted in its files' headers."""
    if not settings.image_model:
        return None
    place = there(model_path(settings, settings.image_model))
    if place is None:
        return None
    files = [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
    side = settings.image_resolution or (512 if settings.image_model == IMAGE_STARTER else 1024)
    return Image(sum(map(_weights_of, files)), side * side)


def _weights_of(file: Path) -> int:
    return sum(map(math.prod, read_header(file).shapes.values()))


def sentences(memory_plan: MemoryPlan) -> list[str]:
    """What a plan means, to be read under its table."""
    if memory_plan.complaint:
        return [f"{memory_plan.complaint} {memory_plan.hint}"]
    way = memory_plan.way
    said = [
        f"Training: {way.batch_size} at a time, images of {way.max_pixels} pixels"
        + (", weights in four bits" if way.quant_method else "")
        + (", activations computed again" if way.gradient_checkpointing else "")
        + "."
    ]
    if len(memory_plan.together) == 1:
        said.append("All of it fits at the same time.")
    else:
        said.append(f"In turns: {'; '.join(' and '.join(group) for group in memory_plan.together)}.")
    if memory_plan.changed:
        said.append(
            "Settings: "
            + ", ".join(f"{name} = {json.dumps(value)}" for name, value in memory_plan.changed.items())
        )
    if memory_plan.seconds:
        said.append(f"A turn of full size trains for about {max(1, round(memory_plan.seconds / 60))} min.")
    elif memory_plan.machine.speed == 0:
        said.append("How long a turn takes is measured on the machine itself.")
    return said
