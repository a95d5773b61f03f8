"""Reads a data file as JSON objects, each with the line on which it begins.

Supported are JSON lines, an array of objects, and consecutive objects over any number of lines, whatever the file's
name; Parquet; and files named .csv or .tsv. Lines end at "\\n" and nowhere else: U+2028, U+0085 and the like are
text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from comfyloop.errors import DataError, NotFound, StorageError
from comfyloop.files import regular
from comfyloop.formats import tables
from comfyloop.formats.record import Item, UnusableRow

MOST_BYTES, MOST_HELD = 2**40, 4 * 2**30
"""Of a file that is read object by object, and of one that is held whole."""
LONGEST = 64 * 2**20
"""Characters of one object, pictures that stand in it included; of a longer one no more is read than this."""
_HEAD, _PIECE = 4096, 2**18
_TOO_LONG = f"it is longer than {LONGEST // 2**20} million characters"
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
    """All objects of a file; unreadable ones with the problem.

    Raises:
        NotFound: There is no such file.
        StorageError: It cannot be read.
        DataError: It is no text of rows.
    """
    _regular(path, MOST_HELD)
    return list(each(path))


def each(path: Path, encoding: str = "") -> Iterator[Item]:
    """Iterate over `items`, holding only one object in memory.

    Args:
        encoding: What the person says that its text is in; empty: UTF-8, and nothing is guessed.

    Raises:
        NotFound, StorageError, DataError: As `items`, before the first of them.
    """
    _regular(path, MOST_BYTES)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head.startswith(b"PAR1"):
            yield from tables.of_parquet(path)
            return
        encoding = _check_encoding(path, head, encoding)
        yield from _of_text(path, encoding)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error


def _of_text(path: Path, encoding: str) -> Iterator[Item]:
    def opened(newline: str) -> TextIO:
        return path.open(encoding=encoding, newline=newline)

    if path.suffix.lower() in tables.SUFFIXES:
        with opened("\n") as file:
            is_table = not _Window(file).begins_with("[", "{")
        if is_table:
            with opened("") as file:
                yield from tables.of_csv(file, path.name)
            return
    with opened("\n") as file:
        whole = _is_whole(file)
    with opened("\n") as file:
        yield from _whole(file) if whole else _lines(file)


def objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that a snapshot wrote.

    Raises:
        NotFound, StorageError: It is not there, or cannot be read.
        DataError: It was changed since, and a line of it is no object.
    """
    rows = items(path)
    for item in rows:
        if item.value is None:
            raise DataError(
                f"{path}:{item.line}: {item.problem}.", "Restore the file, or make the snapshot again."
            )
    return [item.value for item in rows if item.value is not None]


def _regular(path: Path, most: int) -> None:
    if any(part in ("http:", "https:") for part in path.parts):
        raise NotFound(f"{path.name} is named by a web address.", "Download it, and name the file.")
    try:
        regular(path, most)
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(
            f"There is no data file {path}.", "Name a file of rows; data sets of a hub are not read."
        ) from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error


def _check_encoding(path: Path, head: bytes, encoding: str) -> str:
    """The encoding to open a text with. Raises DataError, with the line, if the text is not in that encoding."""
    for begin, what, hint in _NO_TEXT:
        if head.startswith(begin):
            raise DataError(f"{path.name} is {what}, not rows.", hint)
    if not encoding and head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path.name}:1 is UTF-16 text, not UTF-8.", "Save the file as UTF-8.")
    if not encoding or encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    shown = encoding.upper().removesuffix("-SIG")
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError:
        raise DataError(f"There is no encoding {encoding!r}.", "Try gb18030, utf-16 or cp1252.") from None
    line = 1
    with path.open("rb") as file:
        while True:
            piece = file.read(_PIECE)
            try:
                line += decoder.decode(piece, not piece).count("\n")
            except UnicodeError as error:
                if isinstance(error, UnicodeDecodeError):
                    line += error.object[: error.start].count(b"\n")
                raise DataError(
                    f"{path.name}:{line} is not {shown} text.", "Save the file as UTF-8."
                ) from None
            if not piece:
                return encoding


class _Window:
    """A buffered text; `place` is the reading position in the buffer."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.place = file, "", 0
        self.line, self.column = 1, 0  # of the first character that is held; columns from 0

    def more(self) -> bool:
        """Append more text to the unread part of the buffer; False at the end of the file."""
        consumed = self.text[: self.place]
        breaks = consumed.count("\n")
        self.line += breaks
        self.column = len(consumed) - consumed.rfind("\n") - 1 + (0 if breaks else self.column)
        rest = self.text[self.place :]
        piece = self.file.read(max(_PIECE, len(rest)))
        self.text, self.place = rest + piece, 0
        return bool(piece)

    def skip(self, between: str) -> bool:
        """Skip these characters; False at the end of the file."""
        while True:
            while self.place < len(self.text):
                if self.text[self.place] not in between:
                    return True
                self.place += 1
            if not self.more():
                return False

    def begins_with(self, *starts: str) -> bool:
        return self.skip(_SPACE) and self.text[self.place] in starts

    def value(self) -> tuple[Any, int]:
        """The JSON value that begins here, and where it ends. Raises what the decoder raises."""
        decoder = _decoder()
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.place)
                if end < len(self.text) or isinstance(value, dict | list) or not self.more():
                    return value, end
                continue  # a number may go on in what is read next
            except (_Twice, RecursionError):
                raise
            except ValueError:
                if len(self.text) - self.place > LONGEST or not self.more():
                    raise

    def at(self, place: int) -> int:
        """The line number of a position in the buffer."""
        return self.line + self.text.count("\n", 0, place)

    def why(self, error: Exception) -> str:
        if isinstance(error, json.JSONDecodeError):
            here, column = self.at(error.pos), error.colno + (self.column if error.lineno == 1 else 0)
            further = f", line {here}" if here != self.at(self.place) else ""
            return f"it is not JSON ({error.msg} at column {column}{further})"
        return _why(error, 1)


def _is_whole(file: TextIO) -> bool:
    """Whether the file is an array, or objects that are spread over lines, rather than JSON lines."""
    window = _Window(file)
    if not window.begins_with("[", "{"):
        return False
    if window.text[window.place] == "[":
        return True
    while "\n" not in window.text[window.place :] and len(window.text) <= LONGEST and window.more():
        pass
    first = window.text[window.place :].split("\n", 1)[0]
    if _parses(first):
        return False
    try:  # a first line that is no object by itself: part of one, or a bad line among good ones
        _, end = window.value()
    except (ValueError, RecursionError):
        return False
    return end - window.place > len(first)


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(file: TextIO) -> Iterator[Item]:
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) == LONGEST and not line.endswith("\n"):
            begin = line[:200]
            while line and not line.endswith("\n"):
                line = file.readline(_PIECE)
            yield Item(number, begin, None, _TOO_LONG)
            continue
        line = line.strip(_SPACE)
        if line:
            yield _item(number, line)


def _whole(file: TextIO) -> Iterator[Item]:
    """An array's items, or consecutive objects; an unreadable one ends the iteration."""
    window, number = _Window(file), 0
    is_array = window.begins_with("[")
    between = _SPACE + ("[]," if is_array else "")
    while window.skip(between):
        number += 1
        at = number if is_array else 0
        try:
            value, end = window.value()
        except (ValueError, RecursionError) as error:
            here, text = window.at(window.place), window.text[window.place :]
            why = _TOO_LONG if len(text) > LONGEST else window.why(error)
            yield Item(here, text[:200], None, why, at)
            return
        yield _checked(window.at(window.place), window.text[window.place : end], value, at)
        window.place = end


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
    """The object of an item. Raises UnusableRow if there is none."""
    if item.value is None:
        raise UnusableRow(item.problem)
    return item.value
