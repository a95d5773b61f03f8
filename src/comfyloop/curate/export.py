"""Snapshots as data that trains elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from comfyloop.curate.rows import dump_rows
from comfyloop.errors import Conflict, InvalidInput, NotFound, StorageError

_STANDARD = ("messages", "images", "rejected_response", "label")


def export(snapshot: Path, out: Path, format: str = "swift") -> list[Path]:
    """Copies a snapshot's text rows and images into the new folder `out`, as ms-swift reads them.

    The rows keep only ms-swift's own keys. Image paths are absolute, as ms-swift recommends: they hold from
    whatever folder it is started in.

    Returns:
        The data files written.

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


def _copy(snapshot: Path, out: Path) -> list[Path]:
    (out / "images").mkdir(parents=True, exist_ok=True)
    written = []
    for file in sorted(snapshot.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
        if any("picked" in row for row in rows):
            continue  # the image model's data is no chat
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
    return written
