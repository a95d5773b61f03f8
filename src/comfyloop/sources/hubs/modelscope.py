"""Data sets of ModelScope. MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN mean what they mean to its own tools."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from comfyloop.errors import ComfyLoopError, InvalidInput, NotFound
from comfyloop.sources.hubs.hub import ForNow, HubFile, Listing, patiently

T = TypeVar("T")
NAME = "ModelScope"


class ModelScope:
    def __init__(self) -> None:
        try:
            import modelscope_hub
            from modelscope_hub import errors
        except ImportError:
            raise InvalidInput("modelscope-hub is not installed.", "pip install 'comfyloop[hubs]'") from None
        self._errors: Any = errors
        self._api: Any = modelscope_hub.HubApi(endpoint=os.environ.get("MODELSCOPE_ENDPOINT") or None)

    def list(self, id: str, revision: str | None) -> Listing:
        def ask() -> Listing:
            found = self._api.list_repo_files(id, "dataset", revision=revision)
            return Listing(
                [HubFile(file.path, int(file.size or 0)) for file in found if file.type != "tree"], ""
            )

        return self._ask(id, ask)

    def get(self, id: str, revision: str | None, file: HubFile, folder: Path) -> None:
        def ask() -> None:
            self._api.download_file(
                id, "dataset", file.path, revision=revision, local_dir=folder, file_size=file.bytes
            )

        self._ask(id, ask)

    def _ask(self, id: str, do: Callable[[], T]) -> T:
        def once() -> T:
            try:
                return do()
            except Exception as error:
                raise self._said(id, error) from error

        return patiently(NAME, once)

    def _said(self, id: str, error: Exception) -> Exception:
        errors = self._errors
        if isinstance(error, ComfyLoopError):
            return error
        if isinstance(
            error, errors.AuthenticationError | errors.PermissionDeniedError | errors.NotExistError
        ):
            return NotFound(
                f"{NAME} has no data set {id}, or does not show it.",
                "Check its id; for a private one set MODELSCOPE_API_TOKEN to a token that may read it.",
            )
        if isinstance(error, errors.RateLimitError | errors.ServerError | errors.NetworkError):
            return ForNow(str(error).splitlines()[0][:200])
        if isinstance(error, errors.FileIntegrityError | errors.StorageError):
            return ForNow(str(error).splitlines()[0][:200])
        if isinstance(error, errors.InvalidParameter):
            return InvalidInput(f"{NAME} does not take {id!r}: {error}.", "An id reads OWNER/NAME.")
        if isinstance(error, OSError) and error.errno is None:
            return ForNow(str(error)[:200])
        return error
