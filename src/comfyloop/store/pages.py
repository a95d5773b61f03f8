"""Pages of a listing, bounded by bytes as well as by rows: a row may be as large as a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.store.db import Store

PAGE_BYTES = 4 * 2**20
"""For what goes over HTTP: a page ends with the row that passes this."""
PAGE = 200
"""Rows of a page where all are gone through."""

Mark_contra = TypeVar("Mark_contra", contravariant=True)
Row = TypeVar("Row")
Mark = TypeVar("Mark")


def within(
    conn: Connection, query: sa.Select[*tuple[Any, ...]], column: str, most: int | None = None
) -> Iterator[Any]:
    """The first rows of `query` whose texts in `column` have `most` characters together; one at least."""
    size = 0
    with conn.execute(query.execution_options(stream_results=True, max_row_buffer=16)) as rows:
        for row in rows:
            yield row
            size += len(row._mapping[column] or "")
            if most is not None and size >= most:
                return


class Listing(Protocol[Row, Mark_contra]):
    """`list_by` of a noun, newest first."""

    def __call__(
        self, conn: Connection, project: str, /, *, before: Mark_contra | None = None, limit: int = ...
    ) -> list[Row]: ...


def every(
    store: Store, listing: Listing[Row, Mark], project: str, mark: Callable[[Row], Mark]
) -> Iterator[Row]:
    """All rows, newest first. Each page is read in its own transaction, so that the consumer can write in between.

    Args:
        mark: Of a row, what the listing takes as `before`.
    """
    last: Mark | None = None
    while True:
        with store.read() as conn:
            rows = listing(conn, project, before=last, limit=PAGE)
        yield from rows
        if len(rows) < PAGE:
            return
        last = mark(rows[-1])
