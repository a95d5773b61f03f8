"""A data file as JSON objects, each with the line on which it begins.

Read are JSON lines, an array of objects, and objects one after the other over any number of lines, whatever the
file is called; Parquet; and what is called .csv or .tsv. Lines end at "\\n" and nowhere else: U+2028, U+0085 and the
like are text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comfyloop.errors import DataError, NotFound, StorageError
from comfyloop.files import regular
from comfyloop.formats import tables
from comfyloop.formats.record import Item, UnusableRow

MOST_BYTES = 4 * 2**30
_SPACE = " \t\r\n\ufeff"
_UNPACK = "Unpack it, and name the file that was in it."
_NO_TEXT: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "packed by gzip", _UNPACK),
    (b"BZh", "packed by bzip2", _UNPACK),
    (b"\xfd7zXZ", "packed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", _UNPACK),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", "Unpack it, or save the sheet as CSV."),
    (b"ARROW1", "an Arrow file", "Save the data set as JSON lines or Parquet (`to_json`, `to_parquet`)."),
    (b"SQLite format 3", "a database", "Write its rows as JSON lines."),
    (b"%PDF", "a PDF", "Write its content as rows of messages."),
    (b"version https://git-lfs", "a Git LFS pointer to the data", "Fetch the data itself: git lfs pull."),
    (b"<", "a web page or XML", "Download the file of rows itself."),
)
"""How files begin that are no text of rows, what they are, and what to do."""


class _Twice(ValueError):
    """A key that one object has two times."""


def items(path: Path) -> list[Item]:
    """All objects of a file, the unreadable ones with what is wrong with them.

    Raises:
        NotFound: There is no such file.
        StorageError: It cannot be read.
        DataError: It is no text of rows.
    """
    data = _bytes(path)
    if data.startswith(b"PAR1"):
        return list(tables.of_parquet(path))
    text = _text(data, path)
    if path.suffix.lower() in tables.SUFFIXES and not text.lstrip(_SPACE).startswith(("[", "{")):
        return list(tables.of_csv(text, path.name))
    return list(_whole(text) if _is_whole(text) else _lines(text))


def objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that a snapshot wrote.

    Raises:
        NotFound, StorageError: It is not there, or cannot be read.
        DataError: It was changed since, and a line of it is no object.
    """
    found = items(path)
    for item in found:
        if item.value is None:
            raise DataError(
                f"{path}:{item.line}: {item.problem}.", "Restore the file, or make the snapshot again."
            )
    return [item.value for item in found if item.value is not None]


def _bytes(path: Path) -> bytes:
    if any(part in ("http:", "https:") for part in path.parts):
        raise NotFound(f"{path.name} is named by a web address.", "Download it, and name the file.")
    try:
        return regular(path, MOST_BYTES).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(
            f"There is no data file {path}.", "Name a file of rows; data sets of a hub are not read."
        ) from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error


def _text(data: bytes, path: Path) -> str:
    for begin, what, hint in _NO_TEXT:
        if data.startswith(begin):
            raise DataError(f"{path.name} is {what}, not rows.", hint)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path.name}:1 is UTF-16 text, not UTF-8.", "Save the file as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name}:{line} is not UTF-8 text.", "Save the file as UTF-8.") from None


def _is_whole(text: str) -> bool:
    """Whether the file is an array, or objects that are spread over lines, rather than JSON lines."""
    start = text.lstrip(_SPACE)
    if start.startswith("["):
        return True
    first = start.split("\n", 1)[0]
    if not first.startswith("{") or _parses(first):
        return False
    try:  # a first line that is no object by itself: part of one, or a bad line among good ones
        _, end = _decoder().raw_decode(start)
    except (ValueError, RecursionError):
        return False
    return end > len(first)


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(text: str) -> Iterator[Item]:
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip(_SPACE)
        if line:
            yield _item(number, line)


def _whole(text: str) -> Iterator[Item]:
    """An array's items, or objects one after the other; what cannot be read ends the search."""
    decoder, place, number, counted, line = _decoder(), 0, 0, 0, 1
    is_array = text.lstrip(_SPACE).startswith("[")
    between = _SPACE + ("[]," if is_array else "")
    while True:
        while place < len(text) and text[place] in between:
            place += 1
        if place == len(text):
            return
        line += text.count("\n", counted, place)
        counted = place
        number += 1
        at = number if is_array else 0
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            yield Item(line, text[place : place + 200], None, _why(error, line), at)
            return
        yield _checked(line, text[place:end], value, at)
        place = end


def _item(line: int, text: str) -> Item:
    try:
        value = _decoder().decode(text)
    except (ValueError, RecursionError) as error:
        return Item(line, text, None, _why(error, 1))
    return _checked(line, text, value, 0)


def _checked(line: int, text: str, value: Any, item: int) -> Item:
    if isinstance(value, dict):
        return Item(line, text, value, item=item)
    return Item(line, text, None, f"it is a JSON {type(value).__name__}, not an object with messages", item)


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return value


def _why(error: Exception, line: int) -> str:
    if isinstance(error, _Twice):
        return f"it has the key {error} twice"
    if isinstance(error, RecursionError):
        return "its brackets are nested too deep to be read"
    if isinstance(error, json.JSONDecodeError):
        further = f", line {error.lineno}" if error.lineno != line else ""
        return f"it is not JSON ({error.msg} at column {error.colno}{further})"
    return "it has a number of too many digits to be read"


def parsed(item: Item) -> dict[str, Any]:
    """The object of an item. Raises UnusableRow where there is none."""
    if item.value is None:
        raise UnusableRow(item.problem)
    return item.value
