"""What happens, told to whoever listens: threads publish, event loops subscribe."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from comfyloop.records import now

Event = dict[str, Any]
"""{"seq": int, "type": "run.progress" | ..., "project": str, "at": ISO time, ...}"""

BACKLOG = 1000
"""Events that a slow listener may lag behind; older ones are dropped and counted in `events.lost`."""


class _Listener:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiting: deque[Event] = deque()
        self.lost = 0
        self.arrived = asyncio.Event()

    def put(self, event: Event) -> None:
        if len(self.waiting) >= BACKLOG:
            self.waiting.popleft()
            self.lost += 1
        self.waiting.append(event)
        self.arrived.set()


class Events:
    """A broadcast. `publish` never blocks and never fails; without listeners it does nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[_Listener] = []
        self._seq = 0

    def publish(self, event: Event) -> None:
        """Tell every listener; `seq` and `at` are added. May be called from any thread."""
        with self._lock:
            self._seq += 1
            stamped = {"seq": self._seq, "at": now().isoformat(), **event}
            for listener in self._listeners:
                try:
                    listener.loop.call_soon_threadsafe(listener.put, stamped)
                except RuntimeError:  # its loop is closed: it will unsubscribe, or is gone with its loop
                    continue

    async def subscribe(self) -> AsyncIterator[Event]:
        """Every event published from the first `anext` on, until the iterator is closed."""
        listener = _Listener()
        with self._lock:
            self._listeners.append(listener)
        try:
            while True:
                await listener.arrived.wait()
                if listener.lost:
                    lost, listener.lost = listener.lost, 0
                    yield {"type": "events.lost", "count": lost, "at": now().isoformat()}
                while listener.waiting:
                    yield listener.waiting.popleft()
                listener.arrived.clear()
        finally:
            with self._lock:
                self._listeners.remove(listener)
