"""A store and what takes data sets into it; no service."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyloop.datasets import DataSet, Imports, Request
from comfyloop.datasets.place import DataSetFolder, new_place
from comfyloop.records import Feedback, Project
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, open_store, projects


def picture(colour: str = "red", size: tuple[int, int] = (8, 8), kind: str = "PNG", **how: Any) -> bytes:
    out = BytesIO()
    Image.new("RGB", size, colour).save(out, kind, **how)
    return out.getvalue()


@dataclass
class Adding:
    settings: Settings
    store: Store
    imports: Imports
    events: list[dict[str, Any]] = field(default_factory=list)
    _number: int = 0

    def place(self, path: Path | None = None, source: str = "upload") -> DataSetFolder:
        """A data set whose files have come."""
        self._number += 1
        dataset = DataSet(id=f"ds_{self._number}", project="acme", name="it", source=source)
        place = new_place(self.settings, dataset)
        if path is not None and path.is_dir():
            shutil.copytree(path, place.files, dirs_exist_ok=True)
        elif path is not None:
            shutil.copy(path, place.files / path.name)
        return place

    def take(self, place: DataSetFolder, **request: Any) -> DataSet:
        self.imports.start(place, Request(**request))
        self.imports.wait(place.folder.name, 300)
        return self.imports.state(place)

    def add(self, path: Path, **request: Any) -> DataSet:
        return self.take(self.place(path), **request)

    def stored(self) -> list[Feedback]:
        with self.store.read() as conn:
            return [item for _, item in feedback.list_by(conn, "acme", limit=10_000)]

    def left_over(self) -> list[str]:
        """What lies about that no feedback names."""
        return sorted(self.store.blobs.list())


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The home lies beside the data of a test, not among it."""
    folder = tmp_path_factory.mktemp("home")
    return Settings(home=folder / "home", cache_dir=folder / "cache", project="acme", port=0)


@pytest.fixture
def adding(settings: Settings) -> Iterator[Adding]:
    with open_store(settings) as store:
        with store.begin() as conn:
            projects.ensure(conn, Project(name="acme", base_model="m"))
        events: list[dict[str, Any]] = []
        yield Adding(settings, store, Imports(store, settings, events.append), events)
