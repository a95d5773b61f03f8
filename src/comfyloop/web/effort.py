"""How much of what the model answers a person still has to change, over time. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from comfyloop.records import AnswerAccepted, AnswerEdited, AnswerRated, Feedback

KINDS = ("answer_edited", "answer_accepted", "answer_rated")
_GOOD = 4
_FEWEST = 3
"""Answers: of fewer a share says nothing."""
_MOST = 26

Unit = Literal["hour", "day", "week"]
_LENGTHS: dict[Unit, timedelta] = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}


class Stretch(NamedTuple):
    """What became of the answers of one hour, day or week."""

    begin: datetime
    judged: int
    changed: int

    @property
    def share(self) -> float:
        return self.changed / self.judged if self.judged else 0.0


class Effort(NamedTuple):
    unit: Unit
    stretches: tuple[Stretch, ...]

    @property
    def judged(self) -> int:
        return sum(stretch.judged for stretch in self.stretches)

    @property
    def first(self) -> Stretch | None:
        return next((stretch for stretch in self.stretches if stretch.judged >= _FEWEST), None)

    @property
    def last(self) -> Stretch | None:
        found = next((stretch for stretch in reversed(self.stretches) if stretch.judged >= _FEWEST), None)
        return None if found is self.first else found


def effort(items: Iterable[Feedback]) -> Effort:
    """The last word about each answer counts: edited is changed; accepted, or rated well, is used as it was."""
    last: dict[str, tuple[datetime, bool]] = {}
    for item in items:
        verdict = _changed(item)
        about = getattr(item, "generation", None)
        if verdict is None or about is None:
            continue
        earlier = last.get(about)
        if earlier is None or earlier[0] <= item.created_at:
            last[about] = (item.created_at, verdict)
    if not last:
        return Effort("day", ())
    times = [at for at, _ in last.values()]
    unit = _unit(max(times) - min(times))
    counted: dict[datetime, list[int]] = {}
    for at, changed in last.values():
        count = counted.setdefault(_begin(at, unit), [0, 0])
        count[0] += 1
        count[1] += changed
    stretches = tuple(Stretch(begin, *counted[begin]) for begin in sorted(counted))
    return Effort(unit, stretches[-_MOST:])


def _changed(item: Feedback) -> bool | None:
    match item:
        case AnswerEdited():
            return True
        case AnswerAccepted():
            return False
        case AnswerRated() if item.rating >= _GOOD:
            return False
    return None


def _unit(span: timedelta) -> Unit:
    if span >= timedelta(weeks=2):
        return "week"
    return "day" if span >= timedelta(days=2) else "hour"


def _begin(at: datetime, unit: Unit) -> datetime:
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "hour":
        return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday()) if unit == "week" else day
