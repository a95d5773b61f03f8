"""What the warm trainer has read before there was a run, for the runs that are forked from it.

A fork owns what it takes: the pages are shared with the warm process until one of the two writes to them.
Empty in a run that was started cold.
"""

from __future__ import annotations

from typing import Any

_held: dict[tuple[object, ...], Any] = {}


def hold(thing: Any, *key: object) -> None:
    _held[key] = thing


def take(*key: object) -> Any | None:
    """The thing held under this key, to keep and to change; None when there is none (any more)."""
    return _held.pop(key, None)
