"""/runs: how training goes and went: curves, what it was told, and what was hardest to learn."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from comfyloop import formats
from comfyloop.records import Run, Version
from comfyloop.store import runs, snapshots, versions
from comfyloop.train.run.directory import RunDirectory
from comfyloop.web.frame import Asked, Desk
from comfyloop.web.progress import Progress, progress_of, status_of

router = APIRouter()

_PAGE = 30
_POINTS = 60
_HARDEST = 6
_LOG_BYTES = 2**20
_AROUND = 4
"""Steps before and after, that a loss is compared with."""
_STANDS_OUT = 1.5
_SPIKES = 5


class RunLine(NamedTuple):
    """A run in the list."""

    run: Run
    progress: Progress
    curve: str  # the training loss as points of a drawing 100 by 24
    version: int | None


class Hard(NamedTuple):
    """A sample that was still learnt badly when it was last passed."""

    question: str
    answer: str
    loss: float


@router.get("/runs")
def list_runs(desk: Asked, before: Annotated[str | None, Query(max_length=128)] = None) -> HTMLResponse:
    name = desk.project.name
    with desk.services.store.read() as conn:
        found = runs.list_by(conn, name, before=before, limit=_PAGE)
        made = versions.by_run(conn, name, [run.id for run in found])
    lines = [RunLine(run, progress_of(run), curve(points(run).losses), made.get(run.id)) for run in found]
    return desk.show(
        "runs.html", "runs", lines=lines, next_before=found[-1].id if len(found) == _PAGE else None
    )


@router.get("/runs/{id}")
def show_run(id: str, desk: Asked, step: Annotated[int | None, Query(ge=0, lt=2**31)] = None) -> HTMLResponse:
    """A run; with `step`, the samples that this step was made of."""
    with desk.services.store.read() as conn:
        run = runs.get(conn, id)
        snapshot = snapshots.find(conn, run.project, run.snapshot)
        number = versions.by_run(conn, run.project, [run.id]).get(run.id)
        version: Version | None = versions.get(conn, run.project, number) if number else None
    desk = desk.about(run.project)
    told = points(run)
    return desk.show(
        "run.html",
        "runs",
        run=run,
        progress=progress_of(run),
        status=status_of(run),
        held=(Path(run.path) / "held").exists(),
        snapshot=snapshot,
        version=version,
        hardest=hardest(run, Path(snapshot.path)) if snapshot else [],
        others=_others(desk, run),
        spikes=spikes(told),
        step=step,
        behind=behind(run, Path(snapshot.path), told.side, step) if snapshot and step is not None else [],
    )


def _others(desk: Desk, run: Run) -> list[Run]:
    """Runs whose curves may be laid over this one's."""
    with desk.services.store.read() as conn:
        return [other for other in runs.list_by(conn, run.project, limit=_PAGE) if other.id != run.id]


class Points(NamedTuple):
    """The training loss step by step, of a joint run its first side's; empty where the log is gone."""

    side: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]


def points(run: Run) -> Points:
    try:
        with (Path(run.path) / "log.jsonl").open("rb") as file:
            lines = file.read(_LOG_BYTES).splitlines()
    except OSError:
        return Points("", (), ())
    found: list[tuple[int, float]] = []
    side: str | None = None
    for line in lines:
        try:
            read: dict[str, Any] = json.loads(line)
        except ValueError:  # being written
            continue
        side = read.get("side", "") if side is None else side
        if read.get("loss") is not None and read.get("side", "") == side:
            found.append((int(read.get("step", 0)), float(read["loss"])))
    return Points(side or "", tuple(step for step, _ in found), tuple(loss for _, loss in found))


def spikes(told: Points) -> list[tuple[int, float]]:
    """Steps at which the loss stood out from those around, the highest above them first; each with its loss."""
    found = []
    for place, loss in enumerate(told.losses):
        around = [
            *told.losses[max(0, place - _AROUND) : place],
            *told.losses[place + 1 : place + 1 + _AROUND],
        ]
        if len(around) < _AROUND:
            continue
        middle = statistics.median(around)
        if loss > _STANDS_OUT * middle and loss > max(told.losses[max(0, place - 1)], 0.0):
            found.append((loss / middle if middle else math.inf, told.steps[place], loss))
    return [(step, loss) for _, step, loss in sorted(found, reverse=True)[:_SPIKES]]


def behind(run: Run, snapshot: Path, side: str, step: int) -> list[Hard]:
    """The samples that a step was made of, the worst foretold first."""
    rows = RunDirectory(run.path).rows_of(step, side)
    found = sorted(((loss, id) for id, loss in rows.items()), reverse=True)
    return _with_texts(found, snapshot)


def curve(values: Sequence[float], width: float = 100, height: float = 24) -> str:
    """Values as the points of a line, at most sixty: of many the means of equal stretches."""
    if len(values) < 2:
        return ""
    count = min(_POINTS, len(values))
    edges = [round(place * len(values) / count) for place in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return " ".join(
        f"{width * place / (count - 1):.1f},{height - 2 - (height - 4) * (mean - low) / span:.1f}"
        for place, mean in enumerate(means)
    )


def hardest(run: Run, snapshot: Path) -> list[Hard]:
    """The samples with the highest loss when they were last passed: those behind a spike, and what contradicts."""
    try:
        told = json.loads((Path(run.path) / "row_losses.json").read_bytes())
        found = sorted(((float(loss), str(id)) for id, loss in told.items()), reverse=True)[:_HARDEST]
    except (OSError, ValueError, AttributeError):
        return []
    return _with_texts(found, snapshot)


def _with_texts(found: Sequence[tuple[float, str]], snapshot: Path) -> list[Hard]:
    wanted = dict.fromkeys(id for _, id in found)
    texts: dict[str, tuple[str, str]] = {}
    for file in sorted(snapshot.glob("train*.jsonl")):
        for row in formats.objects(file):
            if (id := str(row.get("id", ""))) in wanted and id not in texts:
                texts[id] = asked_and_answered(row)
    return [Hard(*texts[id], loss) for loss, id in found if id in texts]


def asked_and_answered(row: dict[str, Any]) -> tuple[str, str]:
    """The last question of a training row, and its answer."""
    said = [(message["role"], _text(message["content"])) for message in row.get("messages", [])]
    asked = next((text for role, text in reversed(said) if role == "user"), "")
    answered = said[-1][1] if said and said[-1][0] == "assistant" else ""
    return asked.replace("<image>", "").strip(), answered


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))
