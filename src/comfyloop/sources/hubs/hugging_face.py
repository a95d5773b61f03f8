"""Data sets of the Hugging Face hub. HF_ENDPOINT and HF_TOKEN mean what they mean to its own tools."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from comfyloop.errors import ComfyLoopError, InvalidInput, NotFound
from comfyloop.sources.hubs.hub import ForNow, HubFile, Listing, patiently

T = TypeVar("T")
NAME = "The Hugging Face hub"


class HuggingFace:
    def __init__(self) -> None:
        os.environ.setdefault(
            "HF_HUB_DISABLE_XET", "1"
        )  # read when it is imported; its servers are not everywhere
        try:
            import huggingface_hub
            from huggingface_hub import errors
        except ImportError:
            raise InvalidInput("huggingface_hub is not installed.", "pip install 'comfyloop[hubs]'") from None
        self._hub: Any = huggingface_hub
        self._errors: Any = errors
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        self._api = huggingface_hub.HfApi(endpoint=self._endpoint)

    def list(self, id: str, revision: str | None) -> Listing:
        def ask() -> Listing:
            info = self._api.dataset_info(id, revision=revision, files_metadata=True, timeout=30)
            files = [HubFile(file.rfilename, file.size or 0) for file in info.siblings or ()]
            card = info.card_data
            licence = getattr(card, "license", None) if card is not None else None
            return Listing(files, ", ".join(licence) if isinstance(licence, list) else str(licence or ""))

        return self._ask(id, revision, ask)

    def get(self, id: str, revision: str | None, file: HubFile, folder: Path) -> None:
        def ask() -> None:
            self._hub.hf_hub_download(
                id,
                file.path,
                repo_type="dataset",
                revision=revision,
                local_dir=folder,
                endpoint=self._endpoint,
            )

        self._ask(id, revision, ask)

    def _ask(self, id: str, revision: str | None, do: Callable[[], T]) -> T:
        def once() -> T:
            try:
                return do()
            except Exception as error:
                raise self._said(id, revision, error) from error

        return patiently(NAME, once)

    def _said(self, id: str, revision: str | None, error: Exception) -> Exception:
        """What an error of the client is to us; itself where it is none of the hub's."""
        import httpx

        errors = self._errors
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, ComfyLoopError):
            return error
        if isinstance(error, errors.OfflineModeIsEnabled):
            return InvalidInput("HF_HUB_OFFLINE is set, so no hub is asked.", "Unset it, and start again.")
        if isinstance(error, errors.GatedRepoError):
            return InvalidInput(
                f"The data set {id} is gated.",
                "Ask for access on its page, and set HF_TOKEN to a token that may read it.",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return NotFound(f"The data set {id} has no revision {revision}.", "Leave it out for the newest.")
        if isinstance(error, errors.EntryNotFoundError):
            return NotFound(f"A file of the data set {id} is gone.", "Start it again.")
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
            return NotFound(
                f"{NAME} has no data set {id}, or does not show it.",
                "Check its id; for a private one set HF_TOKEN to a token that may read it.",
            )
        if isinstance(error, errors.HFValidationError):
            return InvalidInput(f"{id!r} is no id of a data set.", "It reads OWNER/NAME.")
        if status == 429 or (status is not None and status >= 500):
            after = error.response.headers.get("retry-after", "")  # type: ignore[attr-defined]
            return ForNow(f"status {status}", float(after) if after.isdigit() else 0.0)
        if isinstance(
            error, httpx.HTTPError | errors.LocalEntryNotFoundError | errors.FileMetadataError | OSError
        ):
            if (
                isinstance(error, OSError)
                and error.errno is not None
                and not isinstance(error, ConnectionError)
            ):
                return error
            return ForNow(f"{error or type(error).__name__}".splitlines()[0][:200])
        return error
