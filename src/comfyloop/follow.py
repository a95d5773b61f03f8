"""Watch a turn of the loop in a terminal: its state, a progress bar, and the loss curve as it grows."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from comfyloop import show
from comfyloop.client import Client
from comfyloop.records import Loop, LoopState


def follow(client: Client, before: Loop, console: Console, *, quiet: bool = False) -> Loop:
    """Show a turn until it has ended: its state, and the loss curve while it trains."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    )
    task = bar.add_task("waiting", total=None, note="")
    lines: list[dict[str, Any]] = []
    offset, begun = 0, False
    screen = contextlib.nullcontext() if quiet else Live(bar, console=console, transient=True)
    with screen as live:
        while True:
            loop = client.loop()
            begun = begun or loop.state is not LoopState.IDLE or loop.updated_at > before.updated_at
            if begun and loop.state is LoopState.IDLE and not loop.requested:
                break
            if loop.state is LoopState.TRAINING and loop.run:
                new, offset = client.run_log(loop.run, offset)
                lines += new
            total = lines[-1].get("total_steps") if lines else None
            note = f"step {lines[-1]['step']}  loss {lines[-1]['loss']:.3f}" if lines else ""
            bar.update(task, description=loop.state.value, total=total, completed=len(lines), note=note)
            if live is not None and lines:
                live.update(Group(show.loss_curve(lines), bar))
            time.sleep(0.5)
    if lines and not quiet:
        console.print(show.loss_curve(lines))
    return loop
