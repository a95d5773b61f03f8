"""Generations into the database: a thread that writes all that are waiting in one transaction.

A commit costs the same for one row and for fifty, so answers that end together share one. It does not wait
for the disk: the commit of any feedback does, and makes what was committed before it durable as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from concurrent.futures import Future

from comfyloop.errors import ComfyLoopError, StorageError
from comfyloop.records import Generation
from comfyloop.store import Store, generations

MOST_AT_ONCE = 256

_Item = tuple[Generation, "Future[None]"]


class Recorder:
    """`submit` from any thread; the future is done when it is committed. `close()` writes the rest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def submit(self, generation: Generation) -> Future[None]:
        done: Future[None] = Future()
        self._waiting.put((generation, done))
        return done

    async def record(self, generation: Generation) -> None:
        """Raises StorageError when the database refuses."""
        await asyncio.wrap_future(self.submit(generation))

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        closing = False
        while not closing:
            batch: list[_Item] = []
            item = self._waiting.get()
            while item is not None:
                batch.append(item)
                if len(batch) >= MOST_AT_ONCE:
                    break
                try:
                    item = self._waiting.get_nowait()
                except queue.Empty:
                    break
            closing = item is None
            if batch:
                self._write(batch)

    def _write(self, batch: list[_Item]) -> None:
        try:
            with self._store.begin(durable=False) as conn:
                for generation, _ in batch:
                    generations.add(conn, generation)
        except Exception as error:
            if len(batch) > 1:  # one bad record must not take the others with it
                for item in batch:
                    self._write([item])
                return
            known = isinstance(error, ComfyLoopError)
            _finish(
                batch[0][1], error if known else StorageError(f"The answer could not be recorded: {error}")
            )
            return
        for _, done in batch:
            _finish(done, None)


def _finish(done: Future[None], error: Exception | None) -> None:
    with contextlib.suppress(Exception):  # cancelled: the client left
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
