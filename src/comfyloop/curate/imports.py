"""Data from elsewhere as feedback."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfyloop.curate.rows import ERRORS_SHOWN, read_file, to_messages
from comfyloop.errors import ComfyLoopError, DataError
from comfyloop.files import regular
from comfyloop.formats import Row, UnusableRow
from comfyloop.records import SampleUploaded

MOST_BYTES = 256 * 2**20
"""Of an image file; what is taken of it, the service says."""


@dataclass(frozen=True)
class Import:
    """A data file as feedback."""

    items: list[SampleUploaded]
    places: dict[str, str]  # the id of each -> the file and line that it stands on
    notes: tuple[str, ...]  # what a person should know of the file, as sentences

    def with_lines(self, message: str) -> str:
        """A message of the service about some of the items, with the lines of the file in it."""
        return re.sub(
            r"Item \d+ \((import_[0-9a-f]+)\)", lambda found: self.places.get(found[1], found[0]), message
        )


def read_import(path: Path, project: str, author: str, put_image: Callable[[bytes], str]) -> Import:
    """The rows of a data file as uploaded samples, images read from beside the file.

    The ids are made from the content, so that importing the same rows twice stores them once.

    Args:
        put_image: Checks and stores an image's bytes and returns their hash.

    Raises:
        DataError: Rows or images cannot be used; each is named, and nothing is returned.
    """
    found = read_file(path)
    hashes, problems = _store(path, found.good, put_image)
    if problems:
        more = f"\n... and {len(problems) - ERRORS_SHOWN} more" if len(problems) > ERRORS_SHOWN else ""
        raise DataError(
            f"{len(problems)} images cannot be used:\n" + "\n".join(problems[:ERRORS_SHOWN]) + more,
            f"Paths are relative to {path.parent}; nothing was imported.",
        )
    items: list[SampleUploaded] = []
    places: dict[str, str] = {}
    for row in found.good:
        messages = to_messages(row, [hashes[str(image)] for image in row.images])
        content = [project, author, [m.model_dump(mode="json") for m in messages], row.rejected, row.label]
        item = SampleUploaded(
            id="import_" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32],
            project=project,
            author=author,
            messages=messages,
            rejected=row.rejected,
            label=row.label,
        )
        places.setdefault(item.id, f"{path}:{row.where}")
        items.append(item)
    return Import(items, places, found.notes)


def import_rows(
    path: Path, project: str, author: str, put_image: Callable[[bytes], str]
) -> list[SampleUploaded]:
    """The samples of `read_import` alone."""
    return read_import(path, project, author, put_image).items


def _store(
    path: Path, rows: Sequence[Row], put_image: Callable[[bytes], str]
) -> tuple[dict[str, str], list[str]]:
    """The hash of every picture, and what is wrong with those that have none."""
    hashes: dict[str, str] = {}
    problems: dict[str, str] = {}
    for row in rows:
        for image in row.images:
            source = str(image)
            if source in hashes or source in problems:
                continue
            shown = f"{path}:{row.where}: the image {image.name}"
            try:
                data = regular(image, MOST_BYTES) if isinstance(image, Path) else image
                hashes[source] = put_image(data.read_bytes())
            except OSError as error:
                problems[source] = f"{shown} cannot be read: {error.strerror}"
            except UnusableRow as error:
                problems[source] = f"{shown}: {error}"
            except ComfyLoopError as error:
                problems[source] = f"{shown} cannot be used: {error.message}"
    return hashes, list(problems.values())
