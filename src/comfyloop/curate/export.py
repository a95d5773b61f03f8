"""Snapshots as data that trains elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from comfyloop import formats
from comfyloop.curate.rows import dump_rows, with_images
from comfyloop.errors import Conflict, InvalidInput, NotFound, StorageError
from comfyloop.formats import Row


class Exported(NamedTuple):
    files: list[Path]
    left_out: tuple[str, ...]  # rows that the format cannot say, each named with the reason


def export(snapshot: Path, out: Path, format: str = "swift") -> Exported:
    """Copies a snapshot's text rows and images into the new folder `out`, as ms-swift reads them.

    The rows keep only ms-swift's own keys. Image paths are absolute, as ms-swift recommends: they hold from
    whatever folder it is started in.

    Returns:
        The data files written, and what could not be: a text with ``<image>`` in it would be read as a picture.

    Raises:
        InvalidInput: The format is unknown.
        NotFound: There is no snapshot at that path.
        Conflict: `out` has something in it already.
    """
    if format != "swift":
        raise InvalidInput(f"Data cannot be exported as {format!r}.", "The format is 'swift'.")
    if not (snapshot / "train.jsonl").is_file():
        raise NotFound(f"There is no snapshot at {snapshot}.", "`comfyloop snapshot` makes one.")
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Conflict(f"{out} is there already.", "Give a new or empty folder.")
    try:
        return _copy(snapshot, out)
    except OSError as error:
        raise StorageError(f"The data could not be written to {out}: {error.strerror or error}.") from error


def _copy(snapshot: Path, out: Path) -> Exported:
    (out / "images").mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    left_out: list[str] = []
    for file in sorted(snapshot.glob("*.jsonl")):
        found = formats.read(file, may_be_empty=True)
        if any(row.is_of_a_picture for row in found.good):
            continue  # the image model's data is no chat
        tags = [formats.quoted_tag(row) for row in found.good]
        left_out += [
            f"{file.name}:{bad.where} (sample {bad.id}) is left out: {bad.reason}." for bad in found.bad
        ]
        left_out += [
            f"{file.name}:{row.where} (sample {row.id}) is left out: its text has {tag}, which ms-swift would "
            "take for the place of something else."
            for row, tag in zip(found.good, tags, strict=True)
            if tag
        ]
        rows = [row for row, tag in zip(found.good, tags, strict=True) if not tag]
        target = out / file.name
        target.write_text(dump_rows([_row(row, snapshot, out) for row in rows]), encoding="utf-8")
        written.append(target)
    return Exported(written, tuple(left_out))


def _row(row: Row, snapshot: Path, out: Path) -> dict[str, Any]:
    """A row as ms-swift reads it, with copies of its pictures."""
    images = []
    for image in row.images:
        assert isinstance(image, Path)  # snapshots keep pictures as files
        target = out / image.relative_to(snapshot)
        if not target.exists():
            shutil.copyfile(image, target)
        images.append(str(target))
    return with_images(formats.to_swift(row, images), images)
