"""/data: what a project learns from: feedback, data sets that were added, and snapshots with what they left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse
from pydantic import ValidationError

from comfyloop import formats
from comfyloop.curate import CurationReport, data_files
from comfyloop.curate.report import REASONS
from comfyloop.datasets import DataSet, open_place, places
from comfyloop.records import (
    Dropped,
    Feedback,
    Generation,
    ImagePicked,
    ImageRated,
    Message,
    SampleUploaded,
    Snapshot,
)
from comfyloop.sources import SOURCES
from comfyloop.sources.builtin import BUILTIN
from comfyloop.store import feedback, generations, snapshots
from comfyloop.web.copies import clusters
from comfyloop.web.frame import Asked, Desk
from comfyloop.web.runs import asked_and_answered

router = APIRouter()

_RECENT = 12
_PAGE = 40
_EXAMPLES = 4
_CLUSTERS = 12


class FeedbackPiece(NamedTuple):
    """A piece of feedback with the answer that it is about."""

    seq: int
    item: Feedback
    generation: Generation | None

    @property
    def question(self) -> str:
        if self.generation is not None:
            return _asked(self.generation.messages)
        if isinstance(self.item, SampleUploaded):
            return _asked(self.item.messages)
        return _text(self.item, "prompt")

    @property
    def images(self) -> tuple[str, ...]:
        match self.item:
            case ImagePicked():
                return self.item.picked
            case ImageRated():
                return (self.item.image,)
            case SampleUploaded():
                messages = self.item.messages
            case _:
                messages = self.generation.messages if self.generation is not None else ()
        return tuple(image for message in messages for image in message.images)

    @property
    def before(self) -> str:
        return self.generation.answer if self.generation is not None else _text(self.item, "before")

    @property
    def after(self) -> str:
        """What the person made of it, where that is a text; else what was there."""
        if isinstance(self.item, SampleUploaded):
            last = self.item.messages[-1]
            return last.text if last.role == "assistant" else ""
        return _text(self.item, "edited") or _text(self.item, "after") or self.before


def _asked(messages: tuple[Message, ...]) -> str:
    return next((message.text for message in reversed(messages) if message.role == "user"), "")


def _text(item: Feedback, name: str) -> str:
    """A field of some kinds of feedback, where it is a text: of a workflow's edit it is none."""
    found = getattr(item, name, "")
    return found if isinstance(found, str) else ""


class Left(NamedTuple):
    """Why some feedback was left out, how much, and some of it."""

    reason: str
    sentence: str
    pieces: int
    examples: tuple[tuple[Dropped, FeedbackPiece | None], ...]


class NearCopies(NamedTuple):
    """What was kept of pieces of feedback that say the same, and some of those that were left out for it."""

    kept: FeedbackPiece | None
    copies: tuple[tuple[Dropped, FeedbackPiece | None], ...]
    pieces: int


@router.get("/data")
def show_data(desk: Asked) -> HTMLResponse:
    name = desk.project.name
    with desk.services.store.read() as conn:
        counts = feedback.counts(conn, name)
        recent = feedback.newest(conn, name, limit=_RECENT)
        made = generations.get_many(
            conn, [g for _, item in recent if (g := getattr(item, "generation", None))]
        )
        found = snapshots.list_by(conn, name, limit=20)
    added = [desk.services.imports.state(place) for place in places(desk.services.settings, name)]
    added.sort(key=lambda dataset: dataset.created_at, reverse=True)
    return desk.show(
        "data.html",
        "data",
        counts=counts,
        total=sum(counts.values()),
        recent=pieces_of(recent, made),
        datasets=added,
        builtin=list(BUILTIN.values()),
        snapshots=found,
    )


@router.get("/data/feedback")
def show_feedback(
    desk: Asked,
    before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    kind: Annotated[str, Query(max_length=40)] = "",
    author: Annotated[str, Query(max_length=200)] = "",
) -> HTMLResponse:
    name = desk.project.name
    with desk.services.store.read() as conn:
        counts = feedback.counts(conn, name)
        recent = feedback.newest(
            conn, name, before_seq=before, kind=kind or None, author=author or None, limit=_PAGE
        )
        made = generations.get_many(
            conn, [g for _, item in recent if (g := getattr(item, "generation", None))]
        )
    last = recent[-1][0] if len(recent) == _PAGE else None
    return desk.show(
        "feedback.html",
        "data",
        pieces=pieces_of(recent, made),
        counts=counts,
        kind=kind,
        author=author,
        next_before=last,
    )


@router.get("/data/sets/{id}")
def show_dataset(id: str, desk: Asked) -> HTMLResponse:
    place = open_place(desk.services.settings, desk.project.name, id)
    dataset: DataSet = desk.services.imports.state(place)
    sent = [*place.partial(), *place.sent()]
    return desk.show("dataset.html", "data", dataset=dataset, files=sent, formats=list(SOURCES))


@router.get("/data/snapshots/{id}")
def show_snapshot(id: str, desk: Asked, beside: Annotated[str, Query(max_length=64)] = "") -> HTMLResponse:
    name = desk.project.name
    with desk.services.store.read() as conn:
        snapshot = snapshots.get(conn, name, id)
        others = [found for found in snapshots.list_by(conn, name, limit=20) if found.id != id]
        other = snapshots.get(conn, name, beside) if beside else None
    report = _report(snapshot)
    return desk.show(
        "snapshot.html",
        "data",
        snapshot=snapshot,
        report=report,
        left=_left_out(desk, report.details, report.dropped) if report else [],
        unsure=_left_out(desk, report.unsure, {}) if report else [],
        copies=_near_copies(desk, report.details) if report else [],
        samples=_samples(snapshot),
        others=others,
        other=other,
        came=set(snapshot.feedback) - set(other.feedback) if other else set(),
        went=set(other.feedback) - set(snapshot.feedback) if other else set(),
    )


def pieces_of(items: list[tuple[int, Feedback]], made: dict[str, Generation]) -> list[FeedbackPiece]:
    """Feedback, each with its place in the order, together with the answers that it is about."""
    return [
        FeedbackPiece(seq, item, made.get(getattr(item, "generation", None) or "")) for seq, item in items
    ]


def _report(snapshot: Snapshot) -> CurationReport | None:
    """None where its directory was removed to save room."""
    try:
        return CurationReport.model_validate_json((Path(snapshot.path) / "report.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _left_out(desk: Desk, details: tuple[Dropped, ...], counts: dict[str, int]) -> list[Left]:
    by_reason: dict[str, list[Dropped]] = {reason: [] for reason in counts}
    for dropped in details:
        by_reason.setdefault(dropped.reason, []).append(dropped)
    shown = {reason: found[:_EXAMPLES] for reason, found in by_reason.items()}
    ids = [dropped.feedback for found in shown.values() for dropped in found]
    pieces = _by_id(desk, ids)
    return [
        Left(
            reason,
            REASONS.get(reason, reason),
            counts.get(reason, len(by_reason[reason])),
            tuple((dropped, pieces.get(dropped.feedback)) for dropped in found),
        )
        for reason, found in shown.items()
    ]


def _near_copies(desk: Desk, details: tuple[Dropped, ...]) -> list[NearCopies]:
    found = clusters(details)[:_CLUSTERS]
    shown = [(cluster, cluster.copies[:_EXAMPLES]) for cluster in found]
    ids = [cluster.kept[0] for cluster in found] + [one.feedback for _, copies in shown for one in copies]
    pieces = _by_id(desk, ids)
    return [
        NearCopies(
            pieces.get(cluster.kept[0]),
            tuple((one, pieces.get(one.feedback)) for one in copies),
            len(cluster.copies),
        )
        for cluster, copies in shown
    ]


def _by_id(desk: Desk, ids: Sequence[str]) -> dict[str, FeedbackPiece]:
    """Those that were not taken back since."""
    with desk.services.store.read() as conn:
        items = feedback.find_many(conn, ids)
        about = [g for item in items.values() if (g := getattr(item, "generation", None))]
        made = generations.get_many(conn, about)
    return {piece.item.id: piece for piece in pieces_of([(0, item) for item in items.values()], made)}


def _samples(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Some of what is trained on, question and answer."""
    file = data_files(Path(snapshot.path), "sft").train
    if not file.exists():
        return []
    rows = [row for row in formats.objects(file) if not row.get("replay")]
    return [asked_and_answered(row) for row in rows[:_RECENT]]
