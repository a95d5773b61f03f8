"""Data sets of ModelScope. MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN mean what they mean to its own tools."""

from __future__ import annotations

from pathlib import Path

from comfyloop import hub_clients
from comfyloop.sources.hubs.hub import HubFile, HubListing, HubNames, ask

NAMED = HubNames("ModelScope", "MODELSCOPE_API_TOKEN")


class ModelScope:
    def __init__(self) -> None:
        self._api = hub_clients.modelscope()

    def list(self, id: str, revision: str | None) -> HubListing:
        def listed() -> HubListing:
            found = self._api.list_repo_files(id, "dataset", revision=revision)
            return HubListing(
                [HubFile(file.path, int(file.size or 0)) for file in found if file.type != "tree"], ""
            )

        return ask(NAMED, id, revision, listed)

    def get(self, id: str, revision: str | None, file: HubFile, folder: Path) -> None:
        def fetched() -> None:
            self._api.download_file(
                id, "dataset", file.path, revision=revision, local_dir=folder, file_size=file.bytes
            )

        ask(NAMED, id, revision, fetched)
