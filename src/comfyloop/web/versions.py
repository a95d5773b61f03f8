"""/versions: what was trained, from what, how it was judged; any two side by side; forward and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, NamedTuple

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from comfyloop import integrity
from comfyloop.errors import Conflict
from comfyloop.gate.metrics import METRICS
from comfyloop.gate.report import better_items, moved_most, worse_items
from comfyloop.records import BASE, GateItem, GateReport, Measure, Version
from comfyloop.serve.api.common import VersionNumber
from comfyloop.serve.api.votes import voted
from comfyloop.serve.routing.names import version_name
from comfyloop.store import feedback, generations, lessons, versions
from comfyloop.store.pages import PAGE_BYTES
from comfyloop.web import lineage
from comfyloop.web.data import pieces_of
from comfyloop.web.frame import Asked, Desk

router = APIRouter()

_PAGE = 50
_LESSONS = 20
"""Pieces of feedback of those that a version learnt from, that its page shows."""
_SHOWN = 12
"""Examples of a kind that a report shows at once."""


class VersionLine(NamedTuple):
    """A version in the list."""

    version: Version | None  # None: the base model
    number: int
    strand: lineage.LineageRow
    learned: int
    before: float | None  # edit distance of the live version's answers, and of its own
    after: float | None


class Bar(NamedTuple):
    """A measure as it is drawn: better is to the right, whatever way the metric goes."""

    measure: Measure
    low: float  # of the drawing's half width, -1 to 1
    middle: float
    high: float
    sense: Literal["better", "worse", "open"]
    digits: int


class Scale(NamedTuple):
    """The measures of one metric, drawn to one scale."""

    metric: str
    higher_is_better: bool
    bars: tuple[Bar, ...]


class Side(NamedTuple):
    """The same question as two versions answered it."""

    item: GateItem
    first: str
    second: str


class Pair(NamedTuple):
    """Two versions beside each other.

    Attributes:
        numbers: Of all versions that there are, to choose from.
        gone: Those of the two whose files were removed.
        sheet: The version with whose gate report lies what both drew; None: that was not compared.
    """

    first: int
    second: int
    numbers: tuple[int, ...]
    sides: tuple[Side, ...]
    gone: tuple[int, ...]
    sheet: int | None


@router.get("/versions")
def list_versions(desk: Asked, before: Annotated[int | None, Query(ge=0, lt=2**31)] = None) -> HTMLResponse:
    name, live = desk.project.name, desk.project.live
    with desk.services.store.read() as conn:
        found = versions.list_by(conn, name, before=before, limit=_PAGE, max_bytes=PAGE_BYTES)
        last = found[-1].number if found else 0
        more = bool(found) and bool(versions.list_by(conn, name, before=last, limit=1))
        learned = {version.number: len(lessons.learned(conn, name, version.number)) for version in found}
        back = _back(desk) if live != BASE else None
    strands = lineage.rows([*((v.number, BASE if v.fresh else v.parent) for v in found), (BASE, BASE)])
    lines = [
        VersionLine(version, version.number, strand, learned[version.number], *_distance(version.gate))
        for version, strand in zip(found, strands, strict=False)
    ]
    lines.append(VersionLine(None, BASE, strands[-1], 0, None, None))
    return desk.show(
        "versions.html", "versions", lines=lines, live=live, back=back, next_before=last if more else None
    )


@router.get("/versions/compare")
def compare(
    desk: Asked,
    a: Annotated[int, Query(ge=0, lt=2**31)] = BASE,
    b: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
) -> HTMLResponse:
    """Two versions on the questions that both were asked when they were judged; more can be asked on the page."""
    pair = asked_pair(desk, a, b)
    return desk.show(
        "compare.html",
        "versions",
        pair=pair,
        names=(version_name(desk.project.name, pair.first), version_name(desk.project.name, pair.second)),
        votes=voted(desk.services, desk.project.name),
    )


def asked_pair(desk: Desk, a: int, b: int | None) -> Pair:
    """The two that an address names; b is the live one, or else the newest, where it names none."""
    name = desk.project.name
    with desk.services.store.read() as conn:
        numbers = [found.number for found in versions.names(conn, name)]
        second = b if b is not None else desk.project.live or (numbers[0] if numbers else BASE)
        for number in (a, second):
            if number != BASE:
                versions.get(conn, name, number)
        found = versions.list_by(conn, name, limit=_PAGE, max_bytes=PAGE_BYTES)
    reports = [version.gate for version in found if version.gate]
    sheets = [report for report in reports if report.sheet and {report.live, report.candidate} == {a, second}]
    return Pair(
        a,
        second,
        (BASE, *reversed(numbers)),
        tuple(side_by_side(reports, a, second)),
        tuple(n for n in (a, second) if n != BASE and _is_gone(desk, n)),
        sheets[0].candidate if sheets else None,
    )


@router.get("/versions/{number}")
def show_version(number: VersionNumber, desk: Asked) -> HTMLResponse:
    name = desk.project.name
    with desk.services.store.read() as conn:
        version = None if number == BASE else versions.get(conn, name, number)
        taught_by = lessons.learned(conn, name, number)
        learned = len(taught_by)
        items = feedback.find_many(conn, sorted(taught_by)[-_LESSONS:])
        about = generations.get_many(
            conn, [g for f in items.values() if (g := getattr(f, "generation", None))]
        )
        taught = [found.number for found in versions.names(conn, name)]
    report = version.gate if version else None
    better, worse = (better_items(report), worse_items(report)) if report else ([], [])
    return desk.show(
        "version.html",
        "versions",
        version=version,
        number=number,
        learned=learned,
        pieces=pieces_of([(0, item) for item in items.values()], about),
        live=desk.project.live,
        back=_back(desk) if desk.project.live == number != BASE else None,
        report=report,
        scales=scales(report.measures) if report else [],
        better=better[:_SHOWN],
        better_count=len(better),
        worse=worse[:_SHOWN],
        worse_count=len(worse),
        moved=moved_most(report)[:5] if report else [],
        is_gone=number != BASE and _is_gone(desk, number),
        newer=min((n for n in taught if n > number), default=None),
        older=max((n for n in taught if n < number), default=None),
    )


def _back(desk: Desk) -> int | None:
    """The version that a roll back leads to; None: there is none."""
    with desk.services.store.read() as conn:
        try:
            return versions.rollback_target(conn, desk.project.name)
        except Conflict:
            return None


def _is_gone(desk: Desk, number: int) -> bool:
    folder = integrity.folder(desk.services.settings.home, desk.project.name, number)
    return integrity.pruned(folder)


def _distance(report: GateReport | None) -> tuple[float | None, float | None]:
    for measure in report.measures if report else ():
        if measure.metric == "edit_distance" and measure.slice == "all":
            return measure.live, measure.candidate
    return None, None


def scales(measures: Sequence[Measure]) -> list[Scale]:
    """The measures by metric, in the order in which the gate told them."""
    by_metric: dict[str, list[Measure]] = {}
    for measure in measures:
        by_metric.setdefault(measure.metric, []).append(measure)
    return [Scale(metric, found[0].higher_is_better, _bars(found)) for metric, found in by_metric.items()]


def _bars(measures: Iterable[Measure]) -> tuple[Bar, ...]:
    drawn = []
    for measure in measures:
        low, high = measure.low, measure.high
        middle = measure.candidate - measure.live
        if not measure.higher_is_better:
            low, middle, high = -high, -middle, -low
        drawn.append((measure, low, middle, high))
    widest = max((max(abs(low), abs(high)) for _, low, _, high in drawn), default=0.0) or 1.0
    return tuple(
        Bar(
            measure,
            low / widest,
            max(-1.0, min(1.0, middle / widest)),
            high / widest,
            "better" if low > 0 else "worse" if high < 0 else "open",
            METRICS[measure.metric].digits if measure.metric in METRICS else 3,
        )
        for measure, low, middle, high in drawn
    )


def side_by_side(reports: Sequence[GateReport], first: int, second: int) -> list[Side]:
    """Of the questions that both versions answered in any of the reports, those first on which they differ most."""
    answers: dict[str, dict[int, str]] = {}
    items: dict[str, GateItem] = {}
    for report in reports:  # the newest first: its wording of what was wanted counts
        for item in report.items:
            if item.live_answer or item.candidate_answer:
                items.setdefault(item.sample, item)
                said = answers.setdefault(item.sample, {})
                said.setdefault(report.live, item.live_answer)
                said.setdefault(report.candidate, item.candidate_answer)
    shared = [
        Side(items[sample], said[first], said[second])
        for sample, said in answers.items()
        if first in said and second in said
    ]
    return sorted(shared, key=lambda side: (side.first == side.second, side.item.slice.startswith("general")))
