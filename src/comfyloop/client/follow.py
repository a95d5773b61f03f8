"""Watch a turn of the loop in a terminal: its state, a progress bar, and the loss curve as it grows."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from comfyloop.client import show
from comfyloop.client.client import Client
from comfyloop.records import Loop, LoopState


def follow(
    client: Client,
    before: Loop,
    console: Console,
    *,
    quiet: bool = False,
    seconds: dict[str, float] | None = None,
) -> Loop:
    """Show a turn until it has ended: its state, and the loss curve while it trains.

    Args:
        before: The loop as it stood before the turn.
        seconds: Is told how long each state took, to half a second.
    """
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
    looked = time.monotonic()
    screen = contextlib.nullcontext() if quiet else Live(bar, console=console, transient=True)
    with screen as live:
        while True:
            loop = client.loop()
            ended = bool(loop.outcome) and loop.updated_at > before.updated_at
            if seconds is not None and loop.state is not LoopState.IDLE:
                seconds[loop.state] = seconds.get(loop.state, 0.0) + time.monotonic() - looked
            looked = time.monotonic()
            begun = begun or loop.state is not LoopState.IDLE or ended
            if begun and loop.state is LoopState.IDLE and not loop.requested:
                break
            note, total, step = "", None, 0
            if loop.state is LoopState.TRAINING and loop.run:
                new, offset = client.run_log(loop.run, offset)
                lines += new
                if status := client.call("GET", f"/v1/runs/{loop.run}")["status"]:
                    total, step = status["total_steps"] or None, status["step"]
                    note = (
                        status["phase"]
                        if status["loss"] is None
                        else f"step {step}  loss {status['loss']:.3f}"
                    )
            bar.update(task, description=loop.state.value, total=total, completed=step, note=note)
            if live is not None and lines:
                live.update(Group(show.loss_curve(lines), bar))
            time.sleep(0.5)
    if lines and not quiet:
        console.print(show.loss_curve(lines))
    return loop
