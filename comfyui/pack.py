"""The pack at work in ComfyUI: one `Pack`, kept on `PromptServer.instance` since packs may be imported twice."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .capture import Capture, Host
from .config import Config, ConfigFile
from .delivery import Delivery
from .live import Live, LiveVersion
from .service import Service
from .spool import Spool

log = logging.getLogger("comfyloop")


@dataclass
class Pause:
    """A node that waits for a person."""

    id: str
    node: str
    shown: dict[str, Any]
    answer: dict[str, Any] | None = None


@dataclass
class Pack:
    """Settings, spool, and the thread that talks to the service."""

    folder: Path
    host: Host
    tell: Any  # (event, data) -> None, to the open pages
    pauses: dict[str, Pause] = field(default_factory=dict)
    grids: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=12))

    def __post_init__(self) -> None:
        self.settings = ConfigFile(self.folder / "settings.json")
        self.spool = Spool.open(self.folder / "spool", max_bytes=self.config.spool_mb * 2**20)
        self.live = Live(self.service, self._live_changed)
        self.capture = Capture(self.host, lambda: self.config, self.keep)
        self.loop = asyncio.new_event_loop()
        self.delivery = Delivery(self.spool, self.service)

    @property
    def config(self) -> Config:
        return self.settings.config

    def service(self) -> Service:
        return Service(self.config.url, self.config.token)

    def start(self) -> None:
        threading.Thread(target=self._run, name="comfyloop", daemon=True).start()
        self.capture.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.create_task(self.delivery.run())
        self.loop.create_task(self.live.run())
        self.loop.run_forever()

    def keep(self, items: list[dict[str, Any]], images: dict[str, bytes] | None = None) -> None:
        """Feedback to the disk; raises SpoolError with a sentence. Blocks for an fsync: not for the server's loop."""
        if not items:
            return
        for feedback in items:
            feedback.setdefault("author", self.config.author)
        try:
            self.spool.append(items, images)
        finally:
            self.tell("comfyloop.waiting", {"waiting": self.spool.waiting, "problem": self.spool.problem})
        self.loop.call_soon_threadsafe(self.delivery.wake)

    def show_grid(self, shown: dict[str, Any], files: dict[str, Path]) -> None:
        """Remember images that were offered for a pick, so that it can be made later from the sidebar."""
        self.grids.append({**shown, "files": {sha: str(path) for sha, path in files.items()}})

    def grid_images(self, hashes: list[str]) -> dict[str, bytes]:
        """The bytes of images that were shown, by hash."""
        files = {sha: path for grid in self.grids for sha, path in grid["files"].items()}
        return {sha: Path(files[sha]).read_bytes() for sha in hashes if sha in files and Path(files[sha]).exists()}

    def in_background(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def _live_changed(self, live: LiveVersion) -> None:
        self.tell("comfyloop.live", {"project": live.project, "number": live.number})


def get() -> Pack:
    from server import PromptServer

    return PromptServer.instance.comfyloop


def start() -> Pack:
    """Hook the pack into the running ComfyUI, once."""
    import folder_paths
    from server import PromptServer

    import nodes

    from . import routes

    server = PromptServer.instance
    if getattr(server, "comfyloop", None) is not None:
        return server.comfyloop

    def history(prompt_id: str) -> dict[str, Any] | None:
        return server.prompt_queue.get_history(prompt_id=prompt_id).get(prompt_id)

    def queued(prompt_id: str) -> bool:
        running, waiting = server.prompt_queue.get_current_queue_volatile()
        return any(entry[1] == prompt_id for entry in (*running, *waiting))

    def image_path(name: dict[str, str]) -> Path | None:
        root = folder_paths.get_directory_by_type(name.get("type", ""))
        return Path(root, name.get("subfolder", ""), name["filename"]) if root and name.get("filename") else None

    def is_text(class_type: str, input: str) -> bool:
        return (class_type, input) in _texts(class_type, nodes.NODE_CLASS_MAPPINGS)

    folder = Path(folder_paths.get_user_directory()) / "comfyloop"
    pack = Pack(folder, Host(history, queued, image_path, is_text), lambda event, data: server.send_sync(event, data))
    server.comfyloop = pack
    server.add_on_prompt_handler(pack.capture.on_prompt)
    routes.add(server.routes, pack)
    pack.start()
    return pack


_TEXTS: dict[str, set[tuple[str, str]]] = {}


def _texts(class_type: str, classes: dict[str, Any]) -> set[tuple[str, str]]:
    """The inputs of a node class in which prompts are written: multi-line texts, but not of our own nodes."""
    if class_type not in _TEXTS:
        found: set[tuple[str, str]] = set()
        if class_type in classes and not class_type.startswith("ComfyLoop"):
            for part in classes[class_type].INPUT_TYPES().values():
                for name, spec in part.items() if isinstance(part, dict) else ():
                    options = spec[1] if isinstance(spec, (tuple, list)) and len(spec) > 1 else None
                    if isinstance(options, dict) and options.get("multiline"):
                        found.add((class_type, name))
        _TEXTS[class_type] = found
    return _TEXTS[class_type]
