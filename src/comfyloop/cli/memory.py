"""What fits on this machine, or on another one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from comfyloop.cli.base import Json, app, err, put, settings_of
from comfyloop.models import memory as arithmetic
from comfyloop.models.memory import GIB, PARTS, MemoryPlan


@app.command()
def plan(
    model: Annotated[str | None, typer.Option(help="Base model: `starter`, a directory or a hub id.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Memory of a card that is not here, as 24GB; default: this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what serving, training and drawing take of the memory, what fits together, and which settings that means."""
    from comfyloop.memory.plan import plan_of, sentences

    settings = settings_of(model=model)
    total = arithmetic.bytes_of(gpu) if gpu is not None else None
    with err.status(f"looking at {settings.model}"):
        memory_plan = plan_of(settings, total)
    put(_plain(memory_plan), as_json, _table(memory_plan), *sentences(memory_plan))
    if memory_plan.complaint:
        raise typer.Exit(1)


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
    for part in PARTS:
        table.add_column(part, justify="right")
    for name, need in memory_plan.needs.items():
        table.add_row(name, *(f"{getattr(need, part) / GIB:.2f}" for part in PARTS))
    return table
