"""Which version came from which, as lines beside a list, the newest first. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Strand(NamedTuple):
    """A line from the upper edge of a row to the height of its dot."""

    begin: int
    end: int


class LineageRow(NamedTuple):
    number: int
    lane: int
    above: tuple[Strand, ...]
    below: tuple[int, ...]  # lanes that go on downwards
    width: int  # lanes of the whole drawing


def rows(parents: Sequence[tuple[int, int]]) -> list[LineageRow]:
    """One row a version; its line goes on to the row of its parent, below it.

    Args:
        parents: Numbers and whose weights they went on from, the newest first.
    """
    known = {number for number, _ in parents}
    lanes: list[int | None] = []
    found: list[LineageRow] = []
    for number, parent in parents:
        joining = [place for place, wanted in enumerate(lanes) if wanted == number]
        lane = joining[0] if joining else _free(lanes)
        above = [
            Strand(place, lane if wanted == number else place)
            for place, wanted in enumerate(lanes)
            if wanted is not None
        ]
        for place in joining:
            lanes[place] = None
        if lane == len(lanes):
            lanes.append(None)
        lanes[lane] = parent if parent in known and parent != number else None
        below = tuple(place for place, wanted in enumerate(lanes) if wanted is not None)
        found.append(LineageRow(number, lane, tuple(above), below, 0))
    width = max((max((row.lane, *row.below)) for row in found), default=0) + 1
    return [row._replace(width=width) for row in found]


def _free(lanes: Sequence[int | None]) -> int:
    return next((place for place, wanted in enumerate(lanes) if wanted is None), len(lanes))
