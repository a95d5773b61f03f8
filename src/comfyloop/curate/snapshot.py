"""The directory of a snapshot, written once and whole.

::

    <id>/
      train.jsonl             sft rows and replay: what the recipes `sft` and `sdft` train on
      train.preference.jsonl  chosen and rejected answers: `dpo`
      train.labelled.jsonl    answers wanted or not: `kto`
      train.captioned_image.jsonl, train.image_pair.jsonl   for the image model
      dev.jsonl, ...                                        new, but kept back to tell when to stop
      holdout.jsonl, holdout.preference.jsonl, ...          the same kinds, never trained on
      images/<sha256>.<ext>   hard links into the blob store where it is on the same disk
      report.json, report.txt

``train.jsonl`` and ``holdout.jsonl`` are always there, the others when they have rows. Rows are ms-swift's
with a few more keys (rows.py); image paths are relative to the directory. The id is the SHA-256 of all rows.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from comfyloop import formats, platforms
from comfyloop.curate.lesson import Lesson
from comfyloop.curate.report import CurationReport
from comfyloop.curate.rows import dump_rows, row_of
from comfyloop.durable import write_whole
from comfyloop.errors import DataError, StorageError
from comfyloop.platforms import sync
from comfyloop.recipes import RECIPES
from comfyloop.records import Sample
from comfyloop.store import Blobs

_ABANDONED_SECONDS = 3600.0


REHEARSAL = "rehearsal"
"""What a row's `part` says where an earlier version has learned it."""


class DataFiles(NamedTuple):
    train: Path
    holdout: Path
    dev: Path


def data_files(path: Path, recipe: str) -> DataFiles:
    """The rows that `recipe` trains on and those held out from it; either may be missing when it has no row.

    Raises:
        DataError: There is no such recipe.
    """
    if recipe not in RECIPES:
        known = ", ".join(RECIPES)
        raise DataError(f"There is no data for the recipe {recipe!r}.", f"The recipes are {known}.")
    kind = RECIPES[recipe].kind
    return DataFiles(*(path / _file(side, kind) for side in DataFiles._fields))


def _file(side: str, kind: str) -> str:
    return f"{side}.jsonl" if kind == "sft" else f"{side}.{kind}.jsonl"


def write(
    home: Path,
    project: str,
    lesson: Lesson,
    holdout: Sequence[Sample],
    replay: Sequence[Sample],
    report: CurationReport,
    blobs: Blobs,
    form: Callable[[str], str],
) -> tuple[str, Path]:
    """Writes ``home/snapshots/<id>`` and returns the id and the path; the same rows are written only once.

    Args:
        form: From the hash of a picture to how a file of its format ends; empty where it is none, or damaged.

    Raises:
        StorageError: The disk is full or refuses, or an image in the blob store is damaged.
    """
    every = (*lesson.train, *replay, *lesson.dev, *holdout)
    extensions = {sha: _extension(form, sha) for sample in every for sha in _images(sample)}

    def image_path(sha: str) -> str:
        return f"images/{sha}.{extensions[sha]}"

    rows: dict[str, list[dict[str, Any]]] = {"train.jsonl": [], "holdout.jsonl": []}

    def add(side: str, samples: Sequence[Sample], **more: str) -> None:
        for sample in samples:
            rows.setdefault(_file(side, sample.kind), []).append(row_of(sample, image_path) | more)

    add("train", lesson.new)
    add("train", lesson.rehearsal, part=REHEARSAL)
    add("train", replay)
    add("dev", lesson.dev)
    add("holdout", holdout)
    texts = {name: dump_rows(lines) for name, lines in rows.items()}
    digest = hashlib.sha256(project.encode())
    for name in sorted(texts):
        digest.update(f"\0{name}\0".encode() + texts[name].encode())
    id = digest.hexdigest()
    root = home / "snapshots"
    final = root / id
    if not final.exists():
        texts |= {"report.json": report.model_dump_json(indent=1), "report.txt": report.text()}
        with _refusals(root):
            _write_whole(final, texts, {image_path(sha): sha for sha in extensions}, blobs)
    return id, final


class Made(NamedTuple):
    """What of a snapshot was made of some pieces of feedback: samples by id, pictures by hash."""

    samples: set[str]
    pictures: set[str]


def feedback_of(path: Path) -> set[str]:
    """Ids of the feedback that a snapshot's rows are made of; none where its directory is gone."""
    return {id for row in _every(_rows(path)) for id in row["feedback"]}


def made_of(path: Path, ids: Collection[str]) -> Made:
    out, lost = _out(_every(_rows(path)), ids)
    return Made({row["id"] for row in out}, {Path(image).stem for image in lost})


def strip(path: Path, ids: Collection[str]) -> None:
    """Take the rows that were made of these pieces of feedback out of a snapshot, what its report says of them, and the
    pictures that only they show with what general questions ask about those.

    The snapshot can be read as before; it no longer is what its id is the hash of, which nothing looks at again.

    Raises:
        StorageError: The disk refuses.
    """
    with _refusals(path.parent):
        rows = _rows(path)
        out, lost = _out(_every(rows), ids)
        gone = {row["id"] for row in out}
        for file, found in rows.items():
            kept = [row for row in found if row["id"] not in gone and lost.isdisjoint(formats.paths_in(row))]
            if len(kept) < len(found):
                write_whole(file, dump_rows(kept), durable=True)
        report = path / "report.json"
        if report.exists():
            told = CurationReport.model_validate_json(report.read_bytes())
            left = {
                name: tuple(item for item in getattr(told, name) if item.feedback not in ids)
                for name in ("details", "unsure")
            }
            if left != {name: getattr(told, name) for name in left}:
                write_whole(report, told.model_copy(update=left).model_dump_json(indent=1), durable=True)
        for image in lost:
            (path / image).unlink(missing_ok=True)
        sync(path)


_Row = dict[str, Any]


def _rows(path: Path) -> dict[Path, list[_Row]]:
    return {file: formats.objects(file) for file in sorted(path.glob("*.jsonl"))}


def _every(rows: Mapping[Path, list[_Row]]) -> list[_Row]:
    return [row for found in rows.values() for row in found]


def _out(rows: Sequence[_Row], ids: Collection[str]) -> tuple[list[_Row], set[str]]:
    """The rows that were made of these pieces of feedback, and the pictures that no other sample shows."""
    known = frozenset(ids)
    out = [row for row in rows if not known.isdisjoint(row["feedback"])]
    gone = {row["id"] for row in out}
    left = {
        image
        for row in rows
        if row["id"] not in gone and not row["replay"]
        for image in formats.paths_in(row)
    }
    return out, {image for row in out for image in formats.paths_in(row)} - left


def _images(sample: Sample) -> Iterator[str]:
    yield from sample.images
    yield from (sha for sha in (sample.picked, sample.over) if sha)


def _extension(form: Callable[[str], str], sha: str) -> str:
    if not (found := form(sha)):
        raise StorageError(
            f"The blob {sha} is used as an image but is none, or is damaged.",
            "Upload the image again, or delete the feedback that names it.",
        )
    return found


def _write_whole(final: Path, texts: dict[str, str], images: dict[str, str], blobs: Blobs) -> None:
    root = final.parent
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    draft = root / f".{final.name[:16]}.{secrets.token_hex(6)}.part"
    try:
        (draft / "images").mkdir(parents=True)
        for name, sha in images.items():
            _place(blobs, sha, draft / name)
        for name, text in texts.items():
            _write(draft / name, text.encode())
        sync(draft / "images")
        sync(draft)
        try:
            platforms.rename(draft, final)
        except OSError:
            if not final.exists():  # another process was faster with the same content
                raise
        sync(root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _place(blobs: Blobs, sha: str, target: Path) -> None:
    source = blobs.path(sha)
    if source is not None:
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or a file system without hard links
            pass
    _write(target, blobs.get(sha))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _sweep(root: Path) -> None:
    """Removes what a killed process left half written."""
    for part in root.glob(".*.part"):
        if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _refusals(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"The snapshot could not be written to {root}: {error.strerror or error}.",
            "Make room or mend the permissions, then start the run again; no feedback is lost.",
        ) from error
