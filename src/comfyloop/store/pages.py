"""Pages of a listing, bounded by bytes as well as by rows: a row may be as large as a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

PAGE_BYTES = 4 * 2**20
"""For what goes over HTTP: a page ends with the row that passes this."""


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
