"""Which version of a project is live, kept up to date by the service's events; the last answer while it is away."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .service import Service, ServiceError


@dataclass(frozen=True)
class LiveVersion:
    project: str
    number: int
    image_adapter: str = ""  # its path on the service's machine; empty: none

    @property
    def name(self) -> str:
        return f"{self.project}@{self.number or 'base'}"


class Live:
    """`get` never waits for the service for longer than its time limit, and answers from memory when it can."""

    def __init__(self, service: Callable[[], Service], on_change: Callable[[LiveVersion], None]) -> None:
        self._service, self._on_change = service, on_change
        self._known: dict[str, LiveVersion] = {}
        self._mutex = threading.Lock()
        self.state = "Not connected yet."  # empty while the events arrive

    def known(self, project: str) -> LiveVersion | None:
        with self._mutex:
            return self._known.get(project)

    async def get(self, project: str, limit: float = 2.0) -> LiveVersion | None:
        """None when the service is away and the project was never seen."""
        if self.state or self.known(project) is None:
            with contextlib.suppress(ServiceError, asyncio.TimeoutError):
                await asyncio.wait_for(self.refresh(project), limit)
        return self.known(project)

    async def refresh(self, project: str) -> LiveVersion:
        service = self._service()
        number = int((await service.get(f"/v1/projects/{project}"))["live"])
        adapter = ""
        if number:
            adapter = (await service.get(f"/v1/versions/{number}", project=project)).get("image_adapter") or ""
        found = LiveVersion(project, number, adapter)
        with self._mutex:
            before, self._known[project] = self._known.get(project), found
        if before != found:
            self._on_change(found)
        return found

    async def run(self) -> None:
        """Follow the events for ever."""
        wait = 0.5
        while True:
            try:
                async with self._service().events() as events:
                    for project in list(self._known):
                        await self.refresh(project)
                    self.state, wait = "", 0.5
                    async for event in events:
                        project = event.get("project")
                        if project in self._known and event.get("type") != "feedback.stored":
                            await self.refresh(project)
                self.state = "The service closed the connection."
            except ServiceError as error:
                self.state = str(error)
            await asyncio.sleep(wait)
            wait = min(wait * 2, 15.0)

    async def image_adapter_file(self, live: LiveVersion, folder: Path) -> Path:
        """The version's LoRA as a file of its own in `folder`, fetched once, never overwritten.

        Raises ServiceError when it cannot be had.
        """
        path = folder / f"{live.project}-v{live.number}.safetensors"
        if not path.exists():
            data = await self._adapter_bytes(live)
            await asyncio.to_thread(_put, path, data)
        return path

    async def _adapter_bytes(self, live: LiveVersion) -> bytes:
        here = Path(live.image_adapter)
        if here.is_file():  # the service runs on this machine
            return await asyncio.to_thread(here.read_bytes)
        return await self._service().download(f"/v1/versions/{live.number}/image-adapter", project=live.project)


def _put(path: Path, data: bytes) -> None:
    """A loaded LoRA is memory-mapped: the file must be whole when it appears, and never change afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{hashlib.sha256(os.urandom(16)).hexdigest()[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def newest_file(project: str, folder: Path) -> Path | None:
    """The newest version's LoRA that is here already."""
    files: dict[int, Path] = {}
    for path in folder.glob(f"{project}-v*.safetensors"):
        number: Any = path.stem[len(project) + 2 :]
        if number.isdigit():
            files[int(number)] = path
    return files[max(files)] if files else None
