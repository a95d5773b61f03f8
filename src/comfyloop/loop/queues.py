"""The review queues of projects, cached until something changes: computing one reads all feedback of a project."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from comfyloop import curate
from comfyloop.loop.stages import Stages
from comfyloop.records import BASE, QueueItem
from comfyloop.store import feedback, flags, projects, versions


class Queues:
    """Thread-safe; concurrent requests for a queue wait for the same computation."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._cache: dict[str, tuple[Any, list[QueueItem]]] = {}
        self._locks: dict[str, threading.Lock] = {}

    def of(self, project: str) -> Sequence[QueueItem]:
        """Raises NotFound, StorageError."""
        with self._locks.setdefault(project, threading.Lock()):
            stamp = self._stamp(project)
            cached = self._cache.get(project)
            if cached is None or cached[0] != stamp:
                store, settings = self._stages.store, self._stages.settings
                losses = self._losses(project)
                cached = stamp, curate.queue(store, project, settings, losses, self._stages.known(project))
                self._cache[project] = cached
            return cached[1]

    def _stamp(self, project: str) -> Any:
        """Everything that a queue depends on and that can change."""
        with self._stages.store.read() as conn:
            record = projects.get(conn, project)
            return (
                record.created_at,
                record.live,
                feedback.last_seq(conn, project),
                feedback.count_after(conn, project),  # fewer: some was deleted
                sorted(flags.answers(conn, project).items()),
            )

    def _losses(self, project: str) -> dict[str, float]:
        """The live version's losses in nats per token: on the samples that it was last trained on, and on those
        that judged it."""
        with self._stages.store.read() as conn:
            live = projects.get(conn, project).live
            version = versions.find(conn, project, live) if live != BASE else None
        judged = version.gate.items if version is not None and version.gate is not None else ()
        return self._stages.losses(project, live) | {
            item.sample: -item.scores["log_likelihood"][1]
            for item in judged
            if "log_likelihood" in item.scores
        }
