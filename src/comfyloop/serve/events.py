"""What happens, told to whoever listens: threads publish, event loops subscribe."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any, NamedTuple

from comfyloop.records import now

Event = dict[str, Any]
"""{"seq": int, "type": "run.progress" | ..., "project": str, "at": ISO time, ...}"""

BACKLOG = 1000
"""Events that a slow listener may lag behind; older ones are dropped and counted in `events.lost`."""
AT_A_TIME = 8
"""Events that a listener is given before others have their turn."""


class Told(NamedTuple):
    event: Event
    text: str  # its JSON, made once for all listeners


class _Listener:
    def __init__(self, seen: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.arrived = asyncio.Event()
        self.seen = seen


class Events:
    """A broadcast. `publish` never blocks and never fails; without listeners it does nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[_Listener] = []
        self._recent: deque[Told] = deque(maxlen=BACKLOG)  # the last is number `_seq`
        self._waking: set[asyncio.AbstractEventLoop] = set()
        self._seq = 0

    def publish(self, event: Event) -> None:
        """Tell every listener; `seq` and `at` are added. May be called from any thread."""
        with self._lock:
            self._seq += 1
            stamped = {"seq": self._seq, "at": now().isoformat(), **event}
            self._recent.append(Told(stamped, json.dumps(stamped, ensure_ascii=False, separators=(",", ":"))))
            for loop in {listener.loop for listener in self._listeners} - self._waking:
                try:
                    loop.call_soon_threadsafe(self._wake, loop)
                    self._waking.add(loop)
                except RuntimeError:  # it is closed: its listeners are gone with it
                    continue

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._waking.discard(loop)
            for listener in self._listeners:
                if listener.loop is loop:
                    listener.arrived.set()

    async def subscribe(self) -> AsyncIterator[Told]:
        """Every event published from the first `anext` on, until the iterator is closed."""
        with self._lock:
            listener = _Listener(self._seq)
            self._listeners.append(listener)
        try:
            while True:
                await listener.arrived.wait()
                listener.arrived.clear()
                while fresh := self._after(listener):
                    for told in fresh:
                        yield told
                    await asyncio.sleep(0)
        finally:
            with self._lock:
                self._listeners.remove(listener)

    def _after(self, listener: _Listener) -> list[Told]:
        """The next few events that a listener has not seen, and what it has lost before them."""
        with self._lock:
            oldest = self._seq - len(self._recent) + 1
            lost = max(0, oldest - listener.seen - 1)
            listener.seen += lost
            start = listener.seen + 1 - oldest
            fresh = list(islice(self._recent, start, start + AT_A_TIME))
            listener.seen += len(fresh)
        if lost:
            event = {"type": "events.lost", "count": lost, "at": now().isoformat()}
            fresh.insert(0, Told(event, json.dumps(event)))
        return fresh
