"""Snapshots as data that trains elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from comfyloop.curate.rows import dump_rows
from comfyloop.errors import Conflict, InvalidInput, NotFound, StorageError
from comfyloop.formats import IMAGE_TAG

_STANDARD = ("messages", "images", "rejected_response", "label")


_TAGS = re.compile(r"<(?:image|video|audio|bbox|ref-object|cot-process)>")
"""What ms-swift's rows have no way to quote."""


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
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        if any("picked" in row for row in rows):
            continue  # the image model's data is no chat
        tags = [_quoted_tag(row) for row in rows]
        left_out += [
            f"{file.name}:{number} (sample {row.get('id', '?')}) is left out: its text has {tag}, which ms-swift would "
            "take for the place of something else."
            for number, (row, tag) in enumerate(zip(rows, tags, strict=True), start=1)
            if tag
        ]
        rows = [row for row, tag in zip(rows, tags, strict=True) if not tag]
        for row in rows:
            for image in row.get("images", ()):
                target = out / image
                if not target.exists():
                    shutil.copyfile(snapshot / image, target)
        lean = [
            {key: row[key] for key in _STANDARD if key in row}
            | ({"images": [str(out / image) for image in row["images"]]} if "images" in row else {})
            for row in rows
        ]
        target = out / file.name
        target.write_text(dump_rows(lean), encoding="utf-8")
        written.append(target)
    return Exported(written, tuple(left_out))


def _quoted_tag(row: dict[str, Any]) -> str:
    """The first tag that is text in a row; "" where there is none."""
    pictures = bool(row.get("images"))
    said = [message["content"] for message in row["messages"]] + [row.get("rejected_response") or ""]
    for content in said:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        for tag in _TAGS.findall(text):
            if tag != IMAGE_TAG or not pictures or not isinstance(content, str):
                return str(tag)
    return ""
