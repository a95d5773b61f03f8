"""Which version of a project is live: followed by the service's events, and remembered while it is away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import platforms
from .service import Service, ServiceError

LONGEST_WAIT = 5.0  # seconds between tries while the service is away


@dataclass(frozen=True)
class LiveVersion:
    project: str
    number: int
    lora: str = ""  # the file name of its image LoRA here; empty: it has none

    @property
    def name(self) -> str:
        return f"{self.project}@{self.number or 'base'}"


class Live:
    """Answers from memory; only a project that was never seen is asked for, with a time limit.

    Args:
        service: Made anew for each call, so that changed settings count.
        project: The project of the sidebar, which is followed even when no node names it.
        memory: A file in which the live versions outlast a restart of ComfyUI.
        on_event: Given each of the service's events, and ``{"type": "connected"}``.
    """

    def __init__(
        self,
        service: Callable[[], Service],
        project: Callable[[], str],
        memory: Path,
        on_change: Callable[[LiveVersion], None],
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._service, self._project, self._memory = service, project, memory
        self._on_change, self._on_event = on_change, on_event
        self._known: dict[str, LiveVersion] = {}
        self._applied: dict[str, str] = {}  # project -> the LoRA file that was applied last
        self._url = service().url
        self.state = "Not connected yet."  # empty while the events arrive
        self._recall()

    def known(self, project: str) -> LiveVersion | None:
        return self._known.get(project)

    async def get(self, project: str, limit: float = 2.0) -> LiveVersion | None:
        """None when the service is away, or has no such project, and it was never seen."""
        if self.known(project) is None:
            with contextlib.suppress(ServiceError, asyncio.TimeoutError):
                await asyncio.wait_for(self.refresh(project), limit)
        return self.known(project)

    async def refresh(self, project: str) -> LiveVersion:
        number = int((await self._service().get(f"/v1/projects/{quote(project, safe='')}"))["live"])
        found = LiveVersion(project, number, await self._file_name(project, number))
        before, self._known[project] = self._known.get(project), found
        if before != found:
            self._remember()
            self._on_change(found)
        return found

    async def _file_name(self, project: str, number: int) -> str:
        """Of a version's image LoRA here; empty where it has none."""
        if not number:
            return ""
        version = await self._service().get(f"/v1/versions/{number}", project=project)
        if not version.get("image_adapter"):
            return ""
        # the hash tells versions of a project that was made anew apart
        return "-".join(filter(None, [f"{project}-v{number}", version.get("sha256", "")[:8]])) + ".safetensors"

    async def run(self) -> None:
        """Follow the events for ever. Start it again when the settings have changed."""
        if self._service().url != self._url:
            self._url = self._service().url
            self._known.clear()
            self._applied.clear()
        wait = 0.5
        while True:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    await self._service().check()
                    events = await stack.enter_async_context(self._service().events())
                    for project in {*self._known, self._project()}:
                        await self._refresh_or_forget(project)
                    self.state, wait = "", 0.5
                    self._on_event({"type": "connected"})
                    async for event in events:
                        moved: dict[str, set[str]] = {
                            "version.promoted": {str(event.get("project"))},
                            "events.lost": set(self._known),
                        }
                        for project in moved.get(event["type"], set()) & self._known.keys():
                            await self._refresh_or_forget(project)
                        self._on_event(event)
                self.state = "The service closed the connection."
            except ServiceError as error:
                self.state = str(error)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)

    async def lora(self, project: str, folder: Path) -> tuple[Path | None, str]:
        """The live version's image LoRA, a file of its own in `folder` that is fetched once and never overwritten.

        None where the version has none. Where it cannot be had now, the one that was applied before, and why.
        """
        live = await self.get(project)
        if live is not None:
            try:
                if live.lora and not (folder / live.lora).exists():
                    await self._service().image_adapter(project, live.number, folder / live.lora)
                if self._applied.get(project) != live.lora:
                    self._applied[project] = live.lora
                    self._remember()
                return (folder / live.lora if live.lora else None), ""
            except (ServiceError, OSError) as error:
                why = f"The image LoRA of {live.name} could not be fetched. {error}"
        else:
            why = self.state or f"The service knows no project {project!r}."
        before = self._applied.get(project)
        return (folder / before if before and (folder / before).exists() else None), why

    async def lora_of(self, name: str, folder: Path) -> Path | None:
        """The image LoRA of a version that is named: "acme@17"; None where it has none, as "acme@base".

        Raises ServiceError or OSError: another version than the one that was asked for would be a lie.
        """
        project, _, version = name.partition("@")
        if version != "base" and not version.isdecimal():
            raise ServiceError(f"{name!r} names no version. Write {project}@17, {project}@base or {project}.", 404)
        number = 0 if version == "base" else int(version)
        file = await self._file_name(project, number)
        if file and not (folder / file).exists():
            await self._service().image_adapter(project, number, folder / file)
        return folder / file if file else None

    async def _refresh_or_forget(self, project: str) -> None:
        try:
            await self.refresh(project)
        except ServiceError as error:
            if error.away:
                raise
            self._known.pop(project, None)  # it is gone there

    def _recall(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            stored: dict[str, Any] = json.loads(self._memory.read_bytes())
            if stored["url"] == self._url:
                self._known = {live["project"]: LiveVersion(**live) for live in stored["known"]}
                self._applied = dict(stored["applied"])

    def _remember(self) -> None:
        known = [asdict(live) for live in self._known.values()]
        stored = {"url": self._url, "known": known, "applied": self._applied}
        with contextlib.suppress(OSError):  # without it, a restart only asks the service again
            temporary = self._memory.with_suffix(f".{threading.get_ident()}")
            temporary.write_text(json.dumps(stored), "utf-8")
            platforms.replace(temporary, self._memory)
