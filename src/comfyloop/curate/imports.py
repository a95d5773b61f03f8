"""Data from elsewhere as feedback."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfyloop import formats
from comfyloop.curate.rows import to_messages
from comfyloop.errors import ComfyLoopError, DataError
from comfyloop.files import regular
from comfyloop.formats import Row, UnusableRow
from comfyloop.records import ImagePicked, SampleUploaded

MOST_BYTES = 256 * 2**20
"""Of an image file; what is taken of it, the service says."""
_NOTHING_IMPORTED = "Mend or remove these lines; nothing was imported."

Uploaded = SampleUploaded | ImagePicked


@dataclass(frozen=True)
class Import:
    """A data file as feedback."""

    items: list[Uploaded]
    places: dict[str, str]  # the id of each -> the file and line that it stands on
    notes: tuple[str, ...]  # what a person should know of the file, as sentences

    def with_lines(self, message: str) -> str:
        """A message of the service about some of the items, with the lines of the file in it."""
        return re.sub(
            r"Item \d+ \((import_[0-9a-f]+)\)", lambda found: self.places.get(found[1], found[0]), message
        )


def read_import(path: Path, project: str, author: str, put_image: Callable[[bytes], str]) -> Import:
    """The rows of a data file as uploaded samples and picked pictures, images read from beside the file.

    The ids are made from the content, so that importing the same rows twice stores them once.

    Args:
        put_image: Checks and stores an image's bytes and returns their hash.

    Raises:
        DataError: Rows or images cannot be used; each is named, and nothing is returned.
    """
    found = formats.read_whole(path, _NOTHING_IMPORTED)
    unsaid = [f"{path}:{row.where}: {why}" for row in found.good if (why := unsayable(row))]
    if unsaid:
        raise DataError(
            f"{len(unsaid)} of {len(found.good)} rows cannot be fed back:\n{formats.listed(unsaid)}",
            _NOTHING_IMPORTED,
        )
    hashes, problems = _store(path, found.good, put_image)
    if problems:
        raise DataError(
            f"{len(problems)} images cannot be used:\n{formats.listed(problems)}",
            f"Paths are relative to {path.parent}; nothing was imported.",
        )
    items: list[Uploaded] = []
    places: dict[str, str] = {}
    for row in found.good:
        item = feedback_from(row, project, author, hashes)
        places.setdefault(item.id, f"{path}:{row.where}")
        items.append(item)
    return Import(items, places, (*found.notes, *_lost(path, found.good)))


def unsayable(row: Row) -> str:
    """What no feedback could keep of a row of the image model; "" where there is nothing."""
    if not row.is_of_a_picture:
        return ""
    if not row.answer.strip():
        return "it has a picture and no prompt that it was made from"
    if len(row.turns) > 1 or row.images or row.rejected is not None or row.label is not None:
        return (
            "it has a picture that was kept, and more than the prompt: leave out the conversation to feed back the "
            "picture, or the picture to feed back the conversation"
        )
    return ""


def _lost(path: Path, rows: Sequence[Row]) -> Iterator[str]:
    """What rows say that feedback does not keep."""
    unlearnt = sum(not turn.learn for row in rows for turn in row.turns)
    if unlearnt:
        yield (
            f"{path.name}: {unlearnt} answers within conversations are not to be learnt (weight 0 or loss false). Of "
            "what is fed back the last answer alone is learnt, so they are not; what is exported of it does not say so."
        )
    apart = sum(row.part != "new" for row in rows)
    if apart:
        yield (
            f"{path.name}: {apart} rows were rehearsal or replay in the snapshot that they are of; here they are "
            "samples like any other."
        )


def feedback_from(row: Row, project: str, author: str, hashes: Mapping[str, str]) -> Uploaded:
    """A row as the feedback that it stands for, its id made from the content.

    Args:
        hashes: Of each of the row's pictures, by its name as a string.
    """
    comment = str(row.extra.get("comment") or "")
    more = [comment] if comment else []
    if row.is_of_a_picture:
        chosen, over = (
            [hashes[str(image)]] if image else [] for image in (row.chosen_image, row.rejected_image)
        )
        content: list[object] = [project, author, row.answer, chosen, over, *more]
        return ImagePicked(
            id=_id_of(content),
            project=project,
            author=author,
            picked=tuple(chosen),
            over=tuple(over),
            prompt=row.answer,
            comment=comment,
        )
    messages = to_messages(row, [hashes[str(image)] for image in row.images])
    said = [m.model_dump(mode="json") for m in messages]
    return SampleUploaded(
        id=_id_of([project, author, said, row.rejected, row.label, *more]),
        project=project,
        author=author,
        messages=messages,
        rejected=row.rejected,
        label=row.label,
        comment=comment,
    )


def _id_of(content: list[object]) -> str:
    return "import_" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def import_rows(path: Path, project: str, author: str, put_image: Callable[[bytes], str]) -> list[Uploaded]:
    """The feedback of `read_import` alone."""
    return read_import(path, project, author, put_image).items


def _store(
    path: Path, rows: Sequence[Row], put_image: Callable[[bytes], str]
) -> tuple[dict[str, str], list[str]]:
    """The hash of every picture, and what is wrong with those that have none."""
    hashes: dict[str, str] = {}
    problems: dict[str, str] = {}
    for row in rows:
        for image in row.pictures:
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
