"""All rows of a listing, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from comfyloop.store.db import Store

PAGE = 200

Row_co = TypeVar("Row_co", covariant=True)
Mark_contra = TypeVar("Mark_contra", contravariant=True)
Row = TypeVar("Row")
Mark = TypeVar("Mark")


class Listing(Protocol[Row_co, Mark_contra]):
    """`list_by` of a noun, newest first."""

    def __call__(
        self, conn: Connection, project: str, /, *, before: Mark_contra | None = None, limit: int = ...
    ) -> list[Row_co]: ...


def every(
    store: Store, listing: Listing[Row, Mark], project: str, mark: Callable[[Row], Mark]
) -> Iterator[Row]:
    """The newest first. Each page is read in a transaction of its own, so that what takes them may write meanwhile.

    Args:
        mark: Of a row, what the listing takes as `before`.
    """
    last: Mark | None = None
    while True:
        with store.read() as conn:
            found = listing(conn, project, before=last, limit=PAGE)
        yield from found
        if len(found) < PAGE:
            return
        last = mark(found[-1])
