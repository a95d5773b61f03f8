"""Edits between two runs of a workflow, noticed without being asked for: prompt texts, links, nodes, values.

Only runs that are queued from a page count: they carry the workflow, and a person is at work there; and only those
that succeeded: broken graphs on the way are nobody's wish. `on_prompt` runs inside ComfyUI's request and only takes
a copy; everything else happens in a thread of its own. Capture never raises and never waits.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import graph as graphs
from .config import Config
from .feedback import item
from .host import Host
from .images import ImageError, sha256, without_metadata
from .redact import redact
from .roles import Heard
from .spool import SpoolError

log = logging.getLogger("comfyloop")

MOST_IMAGES = 8  # of one run, in one piece of feedback
MOST_WORKFLOWS = 32  # whose last run is remembered
MOST_PAGES = 64
FEW_NODES = 2  # of a small workflow may be others
FEW_LINKS = 2  # may all be others
GIVEN_UP = 5.0  # seconds after which a run that is neither queued nor in the history was refused or deleted


@dataclass(frozen=True)
class WorkflowLook:
    """By what one workflow is told from another of the same id, as templates made from one another have it."""

    nodes: Mapping[tuple[str, str], str] = field(default_factory=dict)  # id and type of each -> where it stands
    links: frozenset[str] = frozenset()
    told: frozenset[str] = frozenset()  # the texts of its notes, the titles of its groups, its subgraphs


def looks(workflow: dict[str, Any]) -> WorkflowLook:
    """Of a workflow in the page's form."""
    nodes = [node for node in workflow.get("nodes") or () if isinstance(node, dict)]
    notes = {f"note {node.get('widgets_values')}" for node in nodes if node.get("type") in ("Note", "MarkdownNote")}
    groups = {f"group {group.get('title')}" for group in workflow.get("groups") or () if isinstance(group, dict)}
    subgraphs = {f"subgraph {made.get('id')}" for made in (workflow.get("definitions") or {}).get("subgraphs") or ()}
    return WorkflowLook(
        {(str(node.get("id")), str(node.get("type"))): str(node.get("pos")) for node in nodes},
        frozenset(map(str, workflow.get("links") or ())),
        frozenset(notes | groups | subgraphs),
    )


def same_workflow(before: WorkflowLook, after: WorkflowLook, told: bool = False) -> bool:
    """Whether the one may be the other after some work on it: most nodes are there still, and notes, groups and
    subgraphs were only added or only taken away. `told`: the page said that it is the same of its open ones; else
    most nodes stand where they stood and are linked as they were, too. Unsure ones are two: no edit is learnt that
    nobody made."""
    most, kept = max(len(before.nodes), len(after.nodes)), before.nodes.keys() & after.nodes.keys()
    nodes = len(kept) >= 0.8 * most or (most - len(kept) <= FEW_NODES and 2 * len(kept) >= most)
    stay = 2 * sum(before.nodes[key] == after.nodes[key] for key in kept) >= len(kept)
    links = min(len(before.links), len(after.links))
    linked = links <= FEW_LINKS or 2 * len(before.links & after.links) > links
    return nodes and (told or (stay and linked)) and (before.told <= after.told or after.told <= before.told)


@dataclass
class Ran:
    """One run: the graph without secrets, and where its images are."""

    workflow: str
    told: bool  # by the page, which of its open ones it is
    prompt_id: str
    project: str
    author: str
    graph: graphs.Graph
    look: WorkflowLook
    outputs: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # node id -> ComfyUI's image names
    heard: Heard = field(default_factory=dict)  # what its encoders received
    picked: list[str] = field(default_factory=list)  # what a person picked while it went on: its outcome
    seen_at: float = field(default_factory=time.monotonic)


class Capture:
    """`keep(items, images)` puts feedback into the spool; SpoolError from it is shown by the spool itself."""

    def __init__(
        self,
        host: Host,
        config: Callable[[], Config],
        keep: Callable[[list[dict[str, Any]], dict[str, bytes]], None],
    ) -> None:
        self._host, self._config, self._keep = host, config, keep
        self._new: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # work for the thread
        self._last: dict[str, Ran] = {}
        self._open: list[Ran] = []
        self._opened: OrderedDict[str, str] = OrderedDict()  # page -> the workflow that it has open
        self._thread = threading.Thread(target=self._run, name="comfyloop-capture", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def on_prompt(self, request: dict[str, Any]) -> dict[str, Any]:
        """ComfyUI's prompt handler. Gives the run an id where the client has not, so that it is found again."""
        config = self._config()
        if config.capturing:
            try:
                self._take_down(config, request)
            except (AttributeError, TypeError, ValueError):  # not of the page's form: a script's
                log.debug("ComfyLoop did not capture a prompt.", exc_info=True)
        return request

    def _take_down(self, config: Config, request: dict[str, Any]) -> None:
        workflow = ((request.get("extra_data") or {}).get("extra_pnginfo") or {}).get("workflow")
        if not workflow or "prompt" not in request:  # a script sends no workflow
            return
        client = str(request.get("client_id"))
        graph = {  # validation changes the inputs in place, so a copy of two levels
            key: {**node, "inputs": dict(node.get("inputs") or {})} for key, node in request["prompt"].items()
        }
        name = f"{workflow.get('id') or client} {self._opened.get(client, '')}"
        prompt_id = str(request.setdefault("prompt_id", str(uuid.uuid4())))
        look, told = looks(workflow), client in self._opened
        self._new.put(lambda: self._note(config, name, told, look, prompt_id, graph))

    def opened(self, client: str, workflow: str) -> None:
        """The page of a client says, before it queues, which of its open workflows it shows: templates share ids.

        "" where it does not know.
        """
        if not workflow:
            self._opened.pop(client, None)
            return
        self._opened[client] = workflow
        self._opened.move_to_end(client)
        while len(self._opened) > MOST_PAGES:
            self._opened.popitem(last=False)

    def picked(self, prompt_id: str, hashes: list[str]) -> None:
        """Images that were picked in a run; they are its outcome if it still goes on and is captured."""

        def note() -> None:
            for ran in self._open:
                if ran.prompt_id == prompt_id:
                    ran.picked.extend(hashes)

        self._new.put(note)

    def _run(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                self._new.get(timeout=0.25 if self._open else None)()
                while True:
                    self._new.get_nowait()()
            for ran in list(self._open):
                try:
                    self._finish_if_ended(ran)
                except Exception:
                    log.exception("ComfyLoop could not compare two runs; ComfyUI is not affected.")

    def _note(
        self, config: Config, workflow: str, told: bool, look: WorkflowLook, prompt_id: str, graph: graphs.Graph
    ) -> None:
        try:
            clean = graphs.without_data(redact(graph, config.excluded), self._host.kind_of)
        except Exception:
            log.exception("ComfyLoop could not read a workflow; ComfyUI is not affected.")
            return
        self._open.append(Ran(workflow, told, prompt_id, config.project, config.author, clean, look))

    def _finish_if_ended(self, ran: Ran) -> None:
        ended = self._host.history(ran.prompt_id)
        if ended is None:
            if time.monotonic() - ran.seen_at > GIVEN_UP and not self._host.queued(ran.prompt_id):
                self._open.remove(ran)
            return
        self._open.remove(ran)
        if (ended.get("status") or {}).get("status_str") != "success":
            return
        ran.outputs = {
            node: output["images"] for node, output in (ended.get("outputs") or {}).items() if output.get("images")
        }
        ran.heard = self._host.heard(ran.prompt_id)
        before = self._last.pop(ran.workflow, None)
        self._last[ran.workflow] = ran  # the newest last
        if len(self._last) > MOST_WORKFLOWS:
            self._last.pop(next(iter(self._last)))
        if (
            before is not None
            and before.project == ran.project
            and same_workflow(before.look, ran.look, ran.told)
            and graphs.related(before.graph, ran.graph)
        ):
            self.compare(before, ran)

    def compare(self, before: Ran, after: Ran) -> None:
        """Spool what changed between two runs that succeeded."""
        items: list[dict[str, Any]] = []
        images: dict[str, bytes] = {}
        kind_of = self._host.kind_of
        define = self._host.define
        for edit in graphs.text_edits(
            before.graph, after.graph, kind_of, define, before.heard, after.heard, after.outputs
        ):
            earlier = self._take(before, edit.shown_before, images)
            later = self._take(after, edit.shown, images)
            if later:  # a text from which no image was made is no prompt
                items.append(
                    item(
                        "prompt_edited",
                        after.project,
                        author=after.author,
                        before=edit.before,
                        after=edit.after,
                        images_before=earlier,
                        images_after=later,
                        node=f"{edit.node}:{after.graph[edit.node]['class_type']}.{edit.input}",
                    )
                )
        if graphs.changed(before.graph, after.graph, kind_of):
            items.append(
                item(
                    "graph_edited",
                    after.project,
                    author=after.author,
                    before=before.graph,
                    after=after.graph,
                    aim=graphs.aim(after.graph, list(after.outputs), kind_of, define, after.heard),
                    kept=after.picked or self._take(after, set(after.graph), images, only="output"),
                )
            )
        if items:
            with contextlib.suppress(SpoolError):
                self._keep(items, images)

    def _take(self, ran: Ran, nodes: Collection[str], images: dict[str, bytes], only: str = "") -> list[str]:
        """The hashes of what these nodes gave out, whose bytes go into `images`."""
        hashes: list[str] = []
        for name in (name for node in ran.outputs if node in nodes for name in ran.outputs[node]):
            path = self._host.image_path(name)
            if path is None or (only and name.get("type") != only) or len(hashes) >= MOST_IMAGES:
                continue
            with contextlib.suppress(OSError, ImageError):  # a temporary file may be gone by now
                data = without_metadata(path.read_bytes())
                images[sha256(data)] = data
                hashes.append(sha256(data))
        return list(dict.fromkeys(hashes))
