"""Data sets of the Hugging Face hub. HF_ENDPOINT and HF_TOKEN mean what they mean to its own tools."""

from __future__ import annotations

import os
from pathlib import Path

from comfyloop import hub_clients
from comfyloop.sources.hubs.hub import HubFile, HubListing, HubNames, ask

NAMED = HubNames("The Hugging Face hub", "HF_TOKEN")


class HuggingFace:
    def __init__(self) -> None:
        # read when the client is imported; its servers are not everywhere
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
        self._api = hub_clients.hugging_face()

    def list(self, id: str, revision: str | None) -> HubListing:
        def listed() -> HubListing:
            info = self._api.dataset_info(id, revision=revision, files_metadata=True, timeout=30)
            files = [HubFile(file.rfilename, file.size or 0) for file in info.siblings or ()]
            card = info.card_data
            licence = getattr(card, "license", None) if card is not None else None
            return HubListing(files, ", ".join(licence) if isinstance(licence, list) else str(licence or ""))

        return ask(NAMED, id, revision, listed)

    def get(self, id: str, revision: str | None, file: HubFile, folder: Path) -> None:
        def fetched() -> None:
            self._api.hf_hub_download(id, file.path, repo_type="dataset", revision=revision, local_dir=folder)

        ask(NAMED, id, revision, fetched)
