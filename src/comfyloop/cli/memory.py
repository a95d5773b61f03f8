"""What fits on this machine, or on another one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from comfyloop.cli.base import Json, app, err, put, settings_of
from comfyloop.errors import ModelError
from comfyloop.files import there
from comfyloop.models import memory as arithmetic
from comfyloop.models.figures import Figures
from comfyloop.models.memory import GIB, MIB, Image, Machine, MemoryPlan, Step, Trained, Way
from comfyloop.serve.engines.kinds.embedded import KEEPS_MIB, KEEPS_MIB_ON_CPU
from comfyloop.service import model_path
from comfyloop.settings import IMAGE_STARTER, Settings
from comfyloop.stable_diffusion.header import read_header
from comfyloop.train.specs.text import TrainSpec

PATIENCE_SECONDS = 600


@app.command()
def plan(
    model: Annotated[str | None, typer.Option(help="Base model: `starter`, a directory or a hub id.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Memory of a card that is not here, as 24GB; default: this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what serving, training and drawing take of the memory, what fits together, and which settings that means."""
    settings = settings_of(model=model)
    total = arithmetic.bytes_of(gpu) if gpu is not None else None
    with err.status(f"looking at {settings.model}"):
        memory_plan = plan_of(settings, total)
    put(_plain(memory_plan), as_json, _table(memory_plan), *_sentences(memory_plan))
    if memory_plan.complaint:
        raise typer.Exit(1)


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


def _plain(memory_plan: MemoryPlan) -> dict[str, Any]:
    machine = memory_plan.machine
    return {
        "machine": {"name": machine.name, "kind": machine.kind, "total": machine.total, "room": machine.room},
        "needs": {name: {**vars(need), "total": need.total} for name, need in memory_plan.needs.items()},
        "train_with": vars(memory_plan.way),
        "settings": dict(memory_plan.changed),
        "together": [list(group) for group in memory_plan.together],
        "turn_seconds": round(memory_plan.seconds) or None,
        "complaint": memory_plan.complaint,
        "hint": memory_plan.hint,
    }  # fmt: skip


def _table(memory_plan: MemoryPlan) -> Table:
    table = Table(
        title=f"{memory_plan.machine.name}: {memory_plan.machine.total / GIB:.1f} GiB", title_justify="left"
    )
    table.add_column("GiB")
    parts = ("weights", "cache", "activations", "optimizer", "context", "total")
    for part in parts:
        table.add_column(part, justify="right")
    for name, need in memory_plan.needs.items():
        table.add_row(name, *(f"{getattr(need, part) / GIB:.2f}" for part in parts))
    return table


def _sentences(memory_plan: MemoryPlan) -> list[str]:
    if memory_plan.complaint:
        return [f"{memory_plan.complaint} {memory_plan.hint}"]
    way = memory_plan.way
    sentences = [
        f"Training: {way.batch_size} at a time, images of {way.max_pixels} pixels"
        + (", weights in four bits" if way.quant_method else "")
        + (", activations computed again" if way.gradient_checkpointing else "")
        + "."
    ]
    if len(memory_plan.together) == 1:
        sentences.append("All of it fits at the same time.")
    else:
        sentences.append(f"In turns: {'; '.join(' and '.join(group) for group in memory_plan.together)}.")
    if memory_plan.changed:
        sentences.append(
            "Settings: "
            + ", ".join(f"{name} = {_toml(value)}" for name, value in memory_plan.changed.items())
        )
    if memory_plan.seconds:
        sentences.append(
            f"A turn of full size trains for about {max(1, round(memory_plan.seconds / 60))} min."
        )
    elif memory_plan.machine.speed == 0:
        sentences.append("How long a turn takes is measured on the machine itself.")
    return sentences


def _toml(value: str | int | bool) -> str:
    return json.dumps(value)
