"""/: what answers now, what waits, where the loop stands, and what the last version changed."""

from __future__ import annotations

import math
from typing import NamedTuple

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from comfyloop.gate.report import better_items, worse_items
from comfyloop.records import BASE, GateItem, GateReport, LoopState, LoopStatus, Run, Snapshot, Version
from comfyloop.serve.engines.protocol import sleeper_of
from comfyloop.store import feedback, lessons, runs, snapshots, versions
from comfyloop.web.effort import KINDS, effort
from comfyloop.web.frame import Asked, Desk
from comfyloop.web.progress import Progress, progress_of

router = APIRouter()

EXAMPLES = 3
_RECENT = 2000
"""Pieces of feedback by which the person's effort is told."""
_ORDER = (LoopState.IDLE, LoopState.CURATING, LoopState.TRAINING, LoopState.GATING, LoopState.PROMOTING)
_UNDECIDED = {"rejected", "ask", "not_enough_evidence", "waiting"}
"""Ends of a turn that left a trained version beside the live one."""


class Station(NamedTuple):
    """One of the places that what a person corrected passes on its way into the live version."""

    name: str
    address: str
    here: bool
    fact: str


class LiveChange(NamedTuple):
    """What the live version changed when it came."""

    version: Version
    report: GateReport
    better: tuple[GateItem, ...]
    better_count: int
    worse_count: int
    items: int
    closer: float | None  # share by which answers came closer to what was wanted


@router.get("/")
def home(desk: Asked) -> HTMLResponse:
    name = desk.project.name
    status = desk.services.controller.status(name)
    with desk.services.store.read() as conn:
        live = versions.find(conn, name, desk.project.live) if desk.project.live != BASE else None
        learned = len(lessons.learned(conn, name, live.number)) if live else 0
        snapshot = next(iter(snapshots.list_by(conn, name, limit=1)), None)
        run = next(iter(runs.list_by(conn, name, limit=1)), None)
        judged = [item for _, item in feedback.of_kinds(conn, name, KINDS, limit=_RECENT)]
        any_feedback = bool(judged) or feedback.last_seq(conn, name) > 0
    progress = progress_of(run) if run is not None and run.state.is_open else None
    return desk.show(
        "home.html",
        "home",
        stand=status,
        live=live,
        learned=learned,
        begun=any_feedback,
        stations=stations(desk, status, snapshot, run, progress),
        progress=progress,
        change=change(live),
        effort=effort(judged),
        undecided=undecided(desk, status),
        engine=(engine := desk.engine()),
        sleeper=sleeper_of(engine) if engine is not None else None,
    )


def undecided(desk: Desk, status: LoopStatus) -> str:
    """Why the last turn's version is not live, and what would change that; empty where nothing is left open."""
    if status.state is not LoopState.IDLE or status.outcome not in _UNDECIDED:
        return ""
    with desk.services.store.read() as conn:
        version = versions.find(conn, desk.project.name, status.version)
    if version is None or version.gate is None:
        return status.reason
    return " ".join((*version.gate.reasons[:1], version.gate.next_step)).strip()


def stations(
    desk: Desk, status: LoopStatus, snapshot: Snapshot | None, run: Run | None, progress: Progress | None
) -> list[Station]:
    t, at = desk.words, _ORDER.index(status.state)
    facts = [
        t("home.line.waiting", waiting=status.waiting, trigger=status.trigger),
        t("home.line.samples", n=snapshot.train) if snapshot else "",
        _training(desk, run, progress),
        t.known(f"outcome.{status.outcome}", "") if status.outcome and at == 0 else "",
        desk.version(desk.project.live),
    ]
    names = ("corrected", "curated", "trained", "judged", "live")
    addresses = ("/data/feedback", "/data", "/runs", "/versions", "/versions")
    return [
        Station(name, desk.url(address), place == at, fact)
        for place, (name, address, fact) in enumerate(zip(names, addresses, facts, strict=True))
    ]


def _training(desk: Desk, run: Run | None, progress: Progress | None) -> str:
    if progress is not None:
        return desk.words("run.step", step=progress.step, total=progress.total)
    return desk.words.known(f"run.state.{run.state}", run.state) if run is not None else ""


def change(live: Version | None) -> LiveChange | None:
    """None where there is nothing to show: the base model answers, or its report is not kept."""
    if live is None or live.gate is None:
        return None
    report = live.gate
    better, worse = better_items(report), worse_items(report)
    shown = [item for item in better if item.live_answer or item.candidate_answer]
    return LiveChange(
        live,
        report,
        tuple(shown[:EXAMPLES]),
        len(better),
        len(worse),
        sum(not item.slice.startswith("general") for item in report.items),
        closer(report),
    )


def closer(report: GateReport) -> float | None:
    """The share by which the candidate's answers are closer to the wanted ones than the live version's."""
    for measure in report.measures:
        if measure.metric == "edit_distance" and measure.slice == "all" and measure.live > 0:
            share = 1 - measure.candidate / measure.live
            return share if math.isfinite(share) else None
    return None
