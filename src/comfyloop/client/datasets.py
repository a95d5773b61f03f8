"""Data sets sent to a service: what it has already is not sent again, and every file is checked there."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from comfyloop.client.client import Client
from comfyloop.errors import NotFound
from comfyloop.formats import UnusableRow
from comfyloop.sources import SourceOptions, as_written, is_archive, look, outside_name, tree_of

PIECE = 8 * 2**20
"""Bytes that are sent at a time: a service takes 32 MB, unless it is told to take less."""

Tell = Callable[[str, int, int], object]
"""What is done, how much of it, of how much (0: not known)."""


class Local(NamedTuple):
    name: str  # within the data
    path: Path


def begin(
    client: Client, what: str, source: str, *, author: str, licence: str, name: str = "", key: str = ""
) -> dict[str, Any]:
    """A new data set, or the one with the same key that is not stored yet."""
    body = {
        "project": client.project, "name": name or what, "author": author, "source": source,
        "licence": licence, "key": key,
    }  # fmt: skip
    started: dict[str, Any] = client.call("POST", "/v1/datasets", body)
    return started


def key_of(path: Path) -> str:
    """The same for the same folder of this machine."""
    return hashlib.sha256(f"{socket.gethostname()}\0{path.absolute()}".encode()).hexdigest()


def send(client: Client, id: str, path: Path, options: SourceOptions, format: str, tell: Tell) -> None:
    """Send a file or folder, and the pictures elsewhere that its rows name.

    Raises:
        NotFound: There is nothing of that name.
    """
    if not path.exists():
        raise NotFound(
            f"There is no file or folder {path}.", "Name one, a built-in set, or one of a hub (hf:, ms:)."
        )
    if not path.is_dir() and not path.is_file():
        raise NotFound(f"{path} is no file but a pipe or a device.", "Name a file or folder.")
    files_there = {entry["path"]: entry for entry in _sent(client, id)}
    files = list(_files(path, options, format))
    total, sent_bytes = sum(file.path.stat().st_size for file in files), 0
    for file in files:
        size = file.path.stat().st_size
        tell("sending", sent_bytes, total)
        with file.path.open("rb") as data:
            sha = hashlib.file_digest(data, "sha256").hexdigest()
            there_already = files_there.get(file.name, {"bytes": 0, "sha256": ""})
            if there_already["sha256"] != sha:
                begin_at = (
                    there_already["bytes"]
                    if there_already["sha256"] is None and there_already["bytes"] < size
                    else 0
                )
                _send_file(client, id, file.name, data, begin_at, size, sha)
        sent_bytes += size
    tell("sending", sent_bytes, total)


def _send_file(client: Client, id: str, name: str, data: Any, offset: int, size: int, sha: str) -> None:
    url = f"/v1/datasets/{id}/files/{quote(name)}"
    while True:
        data.seek(offset)
        piece = data.read(PIECE)
        client.put_bytes(url, piece, offset=offset, size=size, sha256=sha)
        offset += len(piece)
        if offset >= size or not piece:
            return


def _sent(client: Client, id: str) -> Iterator[dict[str, Any]]:
    yield from client.pages(f"/v1/datasets/{id}/files")


def _files(path: Path, options: SourceOptions, format: str) -> Iterator[Local]:
    tree = tree_of(path)
    yield from (Local(name, tree.path(name)) for name in tree.files)
    if any(is_archive(name) for name in tree.files) or not tree.rows:
        return
    yield from _outside(tree.root if path.is_dir() else None, look(tree, options, format))


def _outside(root: Path | None, scan: Any) -> Iterator[Local]:
    """The pictures that rows name and that are not below the folder which is sent; all, where a file is sent."""
    names: set[str] = set()
    for one in scan.objects:
        try:
            pictures = scan.reading.row_as_written(one).pictures
        except UnusableRow:  # the service says it, with all the others
            continue
        for picture in pictures:
            if not isinstance(picture, Path):
                continue
            name = outside_name(as_written(picture, one.folder))
            if name in names or (root is not None and picture.resolve().is_relative_to(root.resolve())):
                continue
            names.add(name)
            if picture.is_file():
                yield Local(name, picture)


def take(client: Client, id: str, request: dict[str, Any], tell: Tell, pause: float = 0.2) -> dict[str, Any]:
    """Have the service take a data set, and wait until it has. What it became."""
    client.call("POST", f"/v1/datasets/{id}/import", request, project=client.project)
    while True:
        dataset: dict[str, Any] = client.call("GET", f"/v1/datasets/{id}", project=client.project)
        tell(dataset["state"], dataset["rows"] or dataset["progress"], dataset["total"])
        if dataset["state"] in ("done", "refused", "failed"):
            return dataset
        time.sleep(pause)
