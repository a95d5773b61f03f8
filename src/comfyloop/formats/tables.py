"""Reads tables as rows: CSV, TSV and Parquet. A column is a key; empty cells are ignored.

Cells of CSV are text, except messages and lists of pictures, which are written as JSON or Python literals, and the
boolean value of a label.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from comfyloop.errors import DataError
from comfyloop.formats.record import Item
from comfyloop.media import data_urls

SUFFIXES = (".csv", ".tsv")
_LISTS = frozenset(["images", "image", "image_path", "image_paths", "history"])
_WORDS = frozenset(["label", "kto_tag", "weight", "loss", "replay"])
_LONGEST_CELL = 64 * 2**20
_SEPARATED = re.compile(r"\"?sep=([,;\t|])\"?\s*", re.IGNORECASE)
_BATCH = 16
"""Rows of Parquet that are held at a time: each may have pictures in it."""


def of_csv(file: TextIO, name: str) -> Iterator[Item]:
    """The rows of a table in CSV, with the line on which each begins; the first line names the columns.

    Raises:
        DataError: Two columns have one name.
    """
    csv.field_size_limit(_LONGEST_CELL)
    first, before = file.readline(_LONGEST_CELL), 1
    if said := _SEPARATED.fullmatch(first):  # Excel's own word on what is between cells
        first, before = file.readline(_LONGEST_CELL), 2
    separator = said[1] if said else _delimiter(first, name)
    reader = csv.reader(chain([first], _lines(file)), delimiter=separator, strict=True)
    columns: list[str] = []
    while True:
        line = reader.line_num + before
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Item(line, first[:200], None, f"it is not CSV ({error})")
            return
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not columns:
            columns = [cell.strip() for cell in cells]
            twice = {column for column in columns if columns.count(column) > 1}
            if twice:
                raise DataError(
                    f"{name}: two columns are called {sorted(twice)[0]!r}.", "Rename one of them."
                )
            continue
        yield _row(line, columns, cells)


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(_LONGEST_CELL):
        if len(line) == _LONGEST_CELL:
            raise csv.Error(f"a line of more than {_LONGEST_CELL // 2**20} million characters")
        yield line


def _row(line: int, columns: list[str], cells: list[str]) -> Item:
    if len(cells) > len(columns):
        wrong = f"it has {len(cells)} cells, and the first line names {len(columns)} columns"
        return Item(line, "\n".join(cells), None, wrong)
    value = {column: _cell(column, cell) for column, cell in zip(columns, cells, strict=False) if cell}
    return Item(line, json.dumps(value), value)


def _delimiter(first: str, name: str) -> str:
    if name.lower().endswith(".tsv"):
        return "\t"
    return max(",;\t", key=first.count)


def _cell(column: str, cell: str) -> Any:
    if column in _WORDS:
        return _read(cell.lower(), cell)
    if not cell.lstrip().startswith(("[", "{")):
        return cell
    value = _read(cell, cell)
    if column in _LISTS or _is_messages(value):
        return value
    return cell  # an answer may well be JSON


def _is_messages(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(isinstance(item, dict) and item.keys() & {"role", "from"} for item in listed)


def _read(text: str, otherwise: str) -> Any:
    """Parse JSON or a Python literal, which is what pandas writes into a cell."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return otherwise


def of_parquet(path: Path) -> Iterator[Item]:
    """The rows of a Parquet file, counted from 1.

    Raises:
        DataError: It cannot be read, or not here.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{path.name} is a Parquet file, and what reads these is not installed.",
            "Install it (pip install 'comfyloop[parquet]'), or save the data as JSON lines.",
        ) from None
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=_BATCH):
            for row in batch.to_pylist():
                number += 1
                yield _of_values(number, row)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path.name} is a Parquet file that cannot be read ({error}).") from error


def _of_values(number: int, row: dict[str, Any]) -> Item:
    cells = {key: value for key, value in row.items() if value is not None}
    try:
        value = {key: _plain(value, key) for key, value in cells.items()}
    except TypeError as error:
        return Item(number, repr(sorted(cells)), None, str(error))
    return Item(number, json.dumps(value, default=str), value)


def _plain(value: Any, key: str) -> Any:
    """Convert a value to JSON types; the bytes of a picture, as in data sets of a hub, to a data: URL."""
    if isinstance(value, dict):
        data = value.get("bytes")
        if isinstance(data, bytes) and value.keys() <= {"bytes", "path"}:
            return _plain(data, key)
        return {name: _plain(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, key) for inner in value]
    if isinstance(value, bytes):
        if not data_urls.media_type(value):
            raise TypeError(f"its {key} holds bytes that are no picture")
        return data_urls.encode(value)
    return value
