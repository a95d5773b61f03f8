"""The pack at work in ComfyUI: one `Pack`, kept on `PromptServer.instance` since packs may be imported twice."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .ahead import WakeAhead
from .busy import ActivityReporter
from .capture import Capture
from .config import Config, ConfigFile
from .delivery import Delivery
from .freeing import Unloader
from .host import Host
from .launch import Launcher, LaunchError
from .live import Live, LiveVersion
from .service import Service
from .spool import Spool, SpoolError

Result = TypeVar("Result")
LOOK = 0.05
"""Seconds between looks at work that is done apart."""
MOST_JUDGED = 200
"""Answers of which the sidebar shows what was said about them."""
MOST_PAGES = 64
WAKE_SECONDS = 120.0
GONE = 15.0
"""Seconds without a page that shows a pause, after which it ends: one that is reloaded is back by then."""
SHOWN_EVENTS = ("loop.state", "run.progress", "gate.progress", "gate.verdict", "version.promoted", "canary.verdict")
"""Events of the service that the sidebar shows."""


@dataclass
class Pause:
    """A node that waits for a person."""

    id: str
    node: str
    shown: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] | None = None


class Pack:
    """Settings, spool, capture, and the thread that talks to the service.

    Args:
        folder: Where settings and spool are, in ComfyUI's user folder.
        tell: (event, data) to the open pages; may be called from any thread.
        records: Where it may be recorded which ComfyLoop is started from the sidebar.
    """

    def __init__(
        self,
        folder: Path,
        host: Host,
        tell: Callable[[str, dict[str, Any]], None],
        records: Callable[[], Sequence[Path]] = tuple,
    ) -> None:
        self.folder, self.host, self.tell = folder, host, tell
        self.launcher = Launcher(folder, records)
        self.pauses: dict[str, Pause] = {}
        self.grids: deque[dict[str, Any]] = deque(maxlen=12)  # images that were offered for a pick
        self._pages: OrderedDict[str, None] = OrderedDict()  # clients of ComfyUI that are pages
        self.judged: dict[str, dict[str, Any]] = {}  # generation -> what was said about its answer
        self.settings = ConfigFile(folder / "settings.json")
        self._spool: Spool | None = None
        self._spool_problem = ""
        self._spool_mutex = threading.Lock()
        self.loop = asyncio.new_event_loop()
        self.live = Live(
            self.service, lambda: self.config.project, folder / "live.json", self._live_changed, self._on_event
        )
        self.delivery = Delivery(self.spool, self.service, self._tell_waiting)
        self.capture = Capture(host, lambda: self.config, self.keep)
        self._busy = ActivityReporter(
            self.service,
            f"comfyui-{os.getpid()}",
            lambda: host.running() and not self.pauses,
            lambda: not self.live.state,
            host.memory,
        )
        self._unloader = Unloader(
            self.service, lambda: self.config.free_before_runs, host.idle, host.free_bytes, host.unload
        )
        self._ahead = WakeAhead(
            lambda: self.service(WAKE_SECONDS),
            host.coming,
            lambda: self.config.project,
            lambda: not self.live.state,
        )
        self._talks: list[asyncio.Task[None]] = []

    @property
    def config(self) -> Config:
        return self.settings.config

    def service(self, timeout: float = 15.0) -> Service:
        return Service(self.config.url, self.config.token, timeout)

    def page(self, client: str) -> None:
        """A client says that it is a page, which shows pauses; a script's client says nothing."""
        if client:
            self._pages[client] = None
            self._pages.move_to_end(client)
            if len(self._pages) > MOST_PAGES:
                self._pages.popitem(last=False)

    def is_page(self, client: str | None) -> bool:
        return client in self._pages

    @property
    def watched(self) -> bool:
        """Whether a page is open."""
        return any(client in self._pages for client in self.host.clients())

    def start(self) -> None:
        threading.Thread(target=self._run, name="comfyloop", daemon=True).start()
        self.capture.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._talk)
        self.loop.run_forever()

    def _talk(self) -> None:
        """Begin to talk to the service, or begin again."""
        for task in self._talks:
            task.cancel()
        parts = (self.live, self.delivery, self._busy, self._ahead, self._unloader)
        self._talks = [self.loop.create_task(part.run()) for part in parts]

    def change_settings(self, **new: Any) -> Config:
        """Raises ValueError or OSError. Writes a file: not for the server's loop."""
        before = self.config
        config = self.settings.change(**new)
        if (before.url, before.token, before.project) != (config.url, config.token, config.project):
            self.live.state = "Connecting."
            self.loop.call_soon_threadsafe(self._talk)
        return config

    def start_service(self) -> None:
        """Start the service where the settings say that it is. Raises LaunchError or OSError."""
        if not self.live.state:
            raise LaunchError(f"ComfyLoop runs already at {self.config.url}.")
        self.launcher.start(self.config.url)
        self.loop.call_soon_threadsafe(self._talk)  # and not when the next try is due

    async def apart(self, work: Coroutine[Any, Any, Result], stop: Callable[[], None] = lambda: None) -> Result:
        """Do what talks to the service in the pack's own thread: ComfyUI's loops stand still while it loads.

        `stop` is asked several times a second and may raise; then the work is given up at once.
        """
        doing = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            while not doing.done():
                stop()
                await asyncio.sleep(LOOK)
            return doing.result()
        finally:
            doing.cancel()

    def spool(self) -> Spool:
        """Opened when first needed, so that a disk that refuses stops capture and not ComfyUI. Raises SpoolError."""
        with self._spool_mutex:
            if self._spool is None:
                try:
                    self._spool = Spool.open(self.folder / "spool", max_bytes=self.config.spool_mb * 2**20)
                    self._spool_problem = ""
                except SpoolError as error:
                    self._spool_problem = str(error)
                    raise
            return self._spool

    @property
    def waiting(self) -> int:
        return self._spool.waiting if self._spool else 0

    @property
    def refused(self) -> int:
        return self._spool.refused_count if self._spool else 0

    @property
    def problem(self) -> str:
        """Why what a person does is not kept or not captured; empty when all is well."""
        return self.settings.problem or self._spool_problem or (self._spool.problem if self._spool else "")

    def keep(self, items: list[dict[str, Any]], images: dict[str, bytes] | None = None) -> None:
        """Feedback to the disk; raises SpoolError with a sentence. Blocks for an fsync: not for the server's loop."""
        if not items:
            return
        for feedback in items:
            feedback.setdefault("author", self.config.author)
        try:
            self.spool().append(items, images)
        finally:
            self._tell_waiting()
        self.loop.call_soon_threadsafe(self.delivery.wake)

    def show_grid(self, shown: dict[str, Any], files: dict[str, Path], workflow: dict[str, Any]) -> None:
        """Remember images that were offered for a pick, so that it can be made later from the sidebar.

        `workflow` made them, without secrets.
        """
        self.grids.append({**shown, "files": files, "workflow": workflow})

    def said(self, body: dict[str, Any]) -> None:
        """Remember a judgement, so that the sidebar shows it."""
        if "shown" in body:
            told = {name: body.get(name) for name in ("picked", "ratings", "reason")}
            for grid in list(self.grids):
                if (grid["prompt_id"], grid["shown"]) == (body.get("prompt_id"), body["shown"]):
                    grid.update(told, note="done")
        elif body.get("generation"):
            note = "rejected" if body.get("action") == "reject" else "done"
            told = {"text": body["text"], "rating": body.get("rating") or 0, "note": note}
            self.judged[str(body["generation"])] = told
            if len(self.judged) > MOST_JUDGED:
                self.judged.pop(next(iter(self.judged)))

    def grid_images(self, hashes: list[str]) -> dict[str, bytes]:
        """The bytes of images that were shown, by hash; those whose files are gone are left out."""
        files = {sha: path for grid in list(self.grids) for sha, path in grid["files"].items()}
        return {sha: files[sha].read_bytes() for sha in hashes if sha in files and files[sha].exists()}

    def workflow_of(self, hashes: list[str]) -> dict[str, Any] | None:
        """What made images that were shown; None when they are no longer remembered."""
        return next((grid["workflow"] for grid in reversed(list(self.grids)) if grid["shown"] == hashes), None)

    def _tell_waiting(self) -> None:
        self.tell("comfyloop.waiting", {"waiting": self.waiting, "problem": self.problem})

    def _live_changed(self, live: LiveVersion) -> None:
        self.tell("comfyloop.live", {"project": live.project, "number": live.number})

    def _on_event(self, event: dict[str, Any]) -> None:
        self._unloader.on_event(event)
        if event["type"] == "connected":
            self.delivery.wake()
            self.tell("comfyloop.connected", {})
        elif event["type"] in SHOWN_EVENTS and event.get("project") == self.config.project:
            self.tell("comfyloop.event", event)


def get() -> Pack:
    from server import PromptServer

    pack: Pack = PromptServer.instance.comfyloop
    return pack
