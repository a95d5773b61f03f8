"""Data from elsewhere as feedback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from comfyloop import data_urls
from comfyloop.curate.rows import Row, read_rows
from comfyloop.errors import ComfyLoopError, DataError
from comfyloop.records import SampleUploaded


def import_rows(
    path: Path, project: str, author: str, put_image: Callable[[bytes], str]
) -> list[SampleUploaded]:
    """The rows of an ms-swift file as uploaded samples, images read from beside the file.

    The ids are made from the content, so that importing the same rows twice stores them once.

    Args:
        put_image: Checks and stores an image's bytes and returns their hash.

    Raises:
        DataError: A row or an image cannot be used; it is named, and nothing is returned.
    """
    hashes: dict[str, str] = {}
    items = []
    for row in read_rows(path):
        for image in row.images:
            if image not in hashes:
                hashes[image] = _store(row, image, path.parent, put_image)
        messages = row.to_messages([hashes[image] for image in row.images])
        content = [project, author, [m.model_dump(mode="json") for m in messages], row.rejected, row.label]
        items.append(
            SampleUploaded(
                id="import_" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32],
                project=project,
                author=author,
                messages=messages,
                rejected=row.rejected,
                label=row.label,
            )
        )
    return items


def _store(row: Row, image: str, folder: Path, put_image: Callable[[bytes], str]) -> str:
    shown = image if len(image) <= 80 else image[:77] + "..."
    try:
        data = data_urls.decode(image) if image.startswith("data:") else (folder / image).read_bytes()
        return put_image(data)
    except OSError as error:
        raise DataError(
            f"{row.place}: the image {shown} cannot be read: {error.strerror}.",
            f"Paths are relative to {folder}.",
        ) from error
    except ComfyLoopError as error:
        raise DataError(f"{row.place}: the image {shown} cannot be used: {error.message}") from error
