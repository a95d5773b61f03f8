"""Packages of the npm registry, downloaded once and checked; a download that was cut goes on where it was."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import httpx

from comfyloop import platforms
from comfyloop.errors import EngineUnavailable, StorageError

REGISTRY = "https://registry.npmjs.org"
TRIES = 3


class RegistryPackage(NamedTuple):
    name: str
    version: str
    sha512: str  # in base64, as the registry's `integrity` has it
    bytes: int

    @property
    def file(self) -> str:
        return f"{self.name.rpartition('/')[2]}-{self.version}.tgz"


def obtain(package: RegistryPackage, cache: Path) -> Path:
    """The checked package. `npm_config_registry` names another registry, as it does for npm.

    Raises:
        EngineUnavailable: The registry cannot be reached.
        StorageError: What it served is another package, or the disk refuses.
    """
    target = cache / package.file
    if target.is_file() and _sha512(target) == package.sha512:
        return target
    registry = os.environ.get("npm_config_registry") or REGISTRY  # noqa: SIM112 (npm writes it so)
    url = f"{registry.rstrip('/')}/{package.name}/-/{package.file}"
    part = target.with_name(f"{target.name}.part")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _download(url, part, package.bytes)
        if _sha512(part) != package.sha512:
            part.unlink()
            raise StorageError(
                f"The registry served a {package.file} that is not the one this version was made for. It was removed.",
                "Check which registry npm_config_registry names.",
            )
        platforms.replace(part, target)
    except OSError as error:
        raise StorageError(f"{cache} cannot be written: {error.strerror or error}.", "Make room.") from error
    return target


def _download(url: str, part: Path, size: int) -> None:
    for number in range(1, TRIES + 1):
        have = part.stat().st_size if part.exists() else 0
        if have == size:
            return
        if have > size:
            part.unlink()
            have = 0
        try:
            headers = {"range": f"bytes={have}-"} if have else {}
            with httpx.stream("GET", url, headers=headers, timeout=60, follow_redirects=True) as answer:
                answer.raise_for_status()
                with part.open("ab" if answer.status_code == 206 else "wb") as out:
                    for piece in answer.iter_raw():
                        out.write(piece)
        except httpx.HTTPError as error:
            if number == TRIES:
                raise EngineUnavailable(
                    f"{url} could not be downloaded: {error or type(error).__name__}.",
                    "Connect to the network, or set npm_config_registry to a mirror, and start again: it goes on.",
                ) from error


def _sha512(path: Path) -> str:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
