"""Rows of the image model: a prompt as the last message, the picture that was kept of it under ``chosen``, and the one
that it was kept over under ``rejected``.

The same two keys hold answers in rows of the language model (preferences.py). A row is of pictures where both name
one: by a file's name that ends as a picture's does, a data: URL, or an object with a path. Rows of snapshots say of
what kind they are; those written before the keys had these names have ``picked`` and ``over``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfyloop.formats.pictures import SOURCES, picture
from comfyloop.formats.record import Picture, UnusableRow, only

CHOSEN, REJECTED = ("chosen", "picked"), ("rejected", "over")
_OLD = ("picked", "over")
_KINDS = ("captioned_image", "image_pair")
_FILE = re.compile(r"data:image/.*|[^\n]*\.(png|jpe?g|webp|gif|bmp|tiff?)", re.IGNORECASE | re.DOTALL)
_NOTHING: tuple[Any, ...] = (None, "", [], {})


def take_pictures(row: dict[str, Any], folder: Path) -> tuple[Picture | None, Picture | None]:
    """Remove and return the chosen and the rejected picture; None twice for a row of answers.

    Raises:
        UnusableRow: They name no pictures.
    """
    if not _is_of_pictures(row):
        return None, None
    chosen = _taken(row, CHOSEN, folder)
    if chosen is None:
        raise UnusableRow("it has no picture under 'chosen'")
    return chosen, _taken(row, REJECTED, folder)


def _is_of_pictures(row: Mapping[str, Any]) -> bool:
    if row.get("kind") in _KINDS or any(row.get(key) not in _NOTHING for key in _OLD):
        return True
    named = [row[key] for key in ("chosen", "rejected") if row.get(key) not in _NOTHING]
    return "chosen" in row and bool(named) and all(map(names_a_picture, named))


def names_a_picture(source: Any) -> bool:
    if isinstance(source, dict):
        return any(isinstance(source.get(key), str) for key in SOURCES) and "role" not in source
    return isinstance(source, str) and _FILE.fullmatch(source) is not None


def _taken(row: dict[str, Any], keys: tuple[str, str], folder: Path) -> Picture | None:
    key = next((key for key in keys if row.get(key) not in _NOTHING), None)
    source = only(row, keys)
    if key is None:
        return None
    if not isinstance(source, str | dict):
        raise UnusableRow(f"it has no picture under {key!r}")
    return picture(source, folder)


def as_json(source: str) -> str | dict[str, str]:
    """A picture in a form that `take_pictures` recognises, whatever its file name."""
    return source if names_a_picture(source) else {"path": source}


def paths_in(row: Mapping[str, Any]) -> list[str]:
    """All pictures of a row that a snapshot wrote, as files of its directory."""
    sources = [*row.get("images", ()), *(row[key] for key in (*CHOSEN, *REJECTED) if row.get(key))]
    return [source["path"] if isinstance(source, dict) else source for source in sources]
