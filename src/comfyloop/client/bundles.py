"""Bundles to and from a running service: files that are streamed, whatever their size."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from comfyloop import platforms
from comfyloop.client.client import Client
from comfyloop.errors import NotFound, StorageError

CHUNK = 2**20


def contents(client: Client, number: int, wanted: dict[str, Any]) -> dict[str, Any]:
    """What a bundle of a version would hold: `manifest`, and `files` with their sizes."""
    listing: dict[str, Any] = client.call(
        "POST", f"/v1/versions/{number}/bundle/contents", wanted, project=client.project
    )
    return listing


def evaluate(client: Client, number: int) -> list[dict[str, Any]]:
    """How a version and its base model stand on suites: what `wanted` takes as `suites`."""
    suites: list[dict[str, Any]] = client.call(
        "POST", f"/v1/versions/{number}/evaluation", project=client.project
    )
    return suites


def export(client: Client, number: int, target: Path, wanted: dict[str, Any]) -> None:
    """Write a version as a bundle; the file is there whole, or not at all.

    Raises:
        StorageError: The disk refuses.
    """
    part = target.with_name(f".{target.name}.part")
    path = f"/v1/versions/{number}/bundle"
    try:
        with (
            client._streamed("POST", path, json=wanted, params=_about(client)) as response,
            part.open("wb") as handle,
        ):
            for chunk in response.iter_raw(CHUNK):
                handle.write(chunk)
        platforms.replace(part, target)
    except OSError as error:
        raise StorageError(f"{target} could not be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def take_in(client: Client, file: Path, *, trust_new_key: bool = False) -> dict[str, Any]:
    """Take a bundle in as a candidate: `version`, `manifest`, and what is known of its key (`trust`).

    Raises:
        NotFound: There is no such file.
    """
    try:
        handle = file.open("rb")
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}.", "Name a .comfyloop file.") from None
    params = {"trust_new_key": str(trust_new_key).lower(), **_about(client)}
    headers = {"content-type": "application/zip", "content-length": str(file.stat().st_size)}
    chunks = iter(lambda: handle.read(CHUNK), b"")
    with (
        handle,
        client._streamed("POST", "/v1/bundles", content=chunks, params=params, headers=headers) as response,
    ):
        response.read()
        imported: dict[str, Any] = response.json()
    return imported


def _about(client: Client) -> dict[str, str]:
    return {"project": client.project} if client.project else {}
