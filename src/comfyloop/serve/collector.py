"""Python's garbage collector in a process whose event loop others wait for.

A full collection looks at every object there is while all threads stand still: 150 ms with what a service has imported,
and half of that again with some thousands of samples.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_NEVER = 2**31 - 1
_lock = threading.Lock()
_at_work = 0
_usual = gc.get_threshold()


def settle() -> None:
    """What is there now stays to the end: it is looked at once more, and never again."""
    gc.collect()
    gc.freeze()


@contextmanager
def young_only() -> Iterator[None]:
    """No full collection while the block makes many objects that it needs to its end; what dies young is collected."""
    global _at_work, _usual
    with _lock:
        if not _at_work:
            _usual = gc.get_threshold()
            gc.set_threshold(*_usual[:2], _NEVER)
        _at_work += 1
    try:
        yield
    finally:
        with _lock:
            _at_work -= 1
            if not _at_work:
                gc.set_threshold(*_usual)
