"""Edits between two runs of a workflow, noticed without being asked for: prompt texts, links, nodes, values.

`on_prompt` runs inside ComfyUI's request and only takes a copy; everything else happens in a thread of its own.
A run counts when it succeeded: broken graphs on the way are nobody's wish. Capture never raises and never waits.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import graph as graphs
from .config import Config
from .feedback import item
from .images import ImageError, sha256, without_metadata
from .redact import redact
from .spool import SpoolError

log = logging.getLogger("comfyloop")

MOST_IMAGES = 8  # of one run, in one piece of feedback


@dataclass
class Ran:
    """One run: the graph without secrets, and where its images are."""

    workflow: str
    prompt_id: str
    project: str
    author: str
    graph: graphs.Graph
    outputs: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # node id -> ComfyUI's image names
    picked: list[str] = field(default_factory=list)
    seen_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Host:
    """What capture needs of ComfyUI."""

    history: Callable[[str], dict[str, Any] | None]  # prompt id -> its history entry, when it has ended
    queued: Callable[[str], bool]
    image_path: Callable[[dict[str, str]], Path | None]
    is_text: graphs.IsText


class Capture:
    """`keep(items, images)` puts feedback into the spool; SpoolError from it is shown by the spool itself."""

    def __init__(
        self,
        host: Host,
        config: Callable[[], Config],
        keep: Callable[[list[dict[str, Any]], dict[str, bytes]], None],
    ) -> None:
        self._host, self._config, self._keep = host, config, keep
        self._new: queue.SimpleQueue[tuple[Config, dict[str, Any]]] = queue.SimpleQueue()
        self._last: dict[str, Ran] = {}
        self._open: list[Ran] = []
        self._picks: dict[str, list[str]] = {}
        self._thread = threading.Thread(target=self._run, name="comfyloop-capture", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def on_prompt(self, request: dict[str, Any]) -> dict[str, Any]:
        """ComfyUI's prompt handler. Gives the run an id where the client has not, so that it is found again."""
        config = self._config()
        prompt = request.get("prompt")
        if config.capturing and isinstance(prompt, dict):
            request.setdefault("prompt_id", str(uuid.uuid4()))
            extra = request.get("extra_data") or {}
            workflow = ((extra.get("extra_pnginfo") or {}).get("workflow") or {}).get("id")
            copy = {  # validation changes the inputs in place, so a copy of two levels
                key: {**node, "inputs": dict(node.get("inputs") or {})}
                for key, node in prompt.items()
                if isinstance(node, dict)
            }
            key = str(workflow or request.get("client_id") or "api")
            self._new.put((config, {"workflow": key, "prompt_id": str(request["prompt_id"]), "graph": copy}))
        return request

    def picked(self, prompt_id: str, hashes: list[str]) -> None:
        """Images that were picked while the run went on: its outcome."""
        self._picks.setdefault(prompt_id, []).extend(hashes)

    def _run(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                config, seen = self._new.get(timeout=0.25 if self._open else None)
                self._note(config, seen)
            for ran in list(self._open):
                try:
                    self._finish_if_ended(ran)
                except Exception:
                    log.exception("ComfyLoop could not compare two runs; ComfyUI is not affected.")
                    self._open.remove(ran)

    def _note(self, config: Config, seen: dict[str, Any]) -> None:
        try:
            graph = redact(seen.pop("graph"), config.excluded)
        except Exception:
            log.exception("ComfyLoop could not read a workflow; ComfyUI is not affected.")
            return
        self._open.append(Ran(project=config.project, author=config.author, graph=graph, **seen))

    def _finish_if_ended(self, ran: Ran) -> None:
        ended = self._host.history(ran.prompt_id)
        if ended is None:
            if time.monotonic() - ran.seen_at > 5 and not self._host.queued(ran.prompt_id):
                self._open.remove(ran)  # refused by validation, deleted from the queue or from the history
            return
        self._open.remove(ran)
        if (ended.get("status") or {}).get("status_str") != "success":
            self._picks.pop(ran.prompt_id, None)
            return
        ran.outputs = {
            node: output["images"] for node, output in (ended.get("outputs") or {}).items() if output.get("images")
        }
        ran.picked = self._picks.pop(ran.prompt_id, [])
        before, self._last[ran.workflow] = self._last.get(ran.workflow), ran
        if len(self._last) > 32:
            self._last.pop(next(iter(self._last)))
        if before is not None and before.project == ran.project and graphs.related(before.graph, ran.graph):
            self.compare(before, ran)

    def compare(self, before: Ran, after: Ran) -> None:
        """Spool what changed between two runs that succeeded."""
        items: list[dict[str, Any]] = []
        images: dict[str, bytes] = {}
        is_text = self._host.is_text
        for edit in graphs.text_edits(before.graph, after.graph, is_text):
            earlier = self._take(before, graphs.downstream(before.graph, edit.before_node), images)
            later = self._take(after, graphs.downstream(after.graph, edit.node), images)
            if later:  # a text from which no image was made is no prompt
                node = f"{edit.node}:{after.graph[edit.node]['class_type']}.{edit.input}"
                items.append(
                    item(
                        "prompt_edited",
                        after.project,
                        author=after.author,
                        before=edit.before,
                        after=edit.after,
                        images_before=earlier,
                        images_after=later,
                        node=node,
                    )
                )
        if graphs.changed(before.graph, after.graph, is_text):
            kept = after.picked or self._take(after, set(after.graph), images, only="output")
            items.append(
                item(
                    "graph_edited",
                    after.project,
                    author=after.author,
                    before=before.graph,
                    after=after.graph,
                    kept=kept,
                )
            )
        if items:
            with contextlib.suppress(SpoolError):
                self._keep(items, images)

    def _take(self, ran: Ran, nodes: set[str], images: dict[str, bytes], only: str = "") -> list[str]:
        hashes: list[str] = []
        for node in ran.outputs:
            if node.split(":")[0] not in nodes and node not in nodes:
                continue
            for name in ran.outputs[node]:
                path = self._host.image_path(name)
                if path is None or (only and name.get("type") != only) or len(hashes) >= MOST_IMAGES:
                    continue
                with contextlib.suppress(OSError, ImageError):  # a temporary file may be gone by now
                    data = without_metadata(path.read_bytes())
                    images[sha256(data)] = data
                    hashes.append(sha256(data))
        return list(dict.fromkeys(hashes))
