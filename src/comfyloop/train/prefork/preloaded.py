"""Objects that the warm trainer has loaded in advance for the runs that are forked from it.

A fork owns what it takes: the pages are shared with the warm process until one of the two writes to them.
Empty in a run that was started cold.
"""

from __future__ import annotations

from typing import Any

_held: dict[tuple[object, ...], Any] = {}


def hold(thing: Any, *key: object) -> None:
    _held[key] = thing


def take(*key: object) -> Any | None:
    """Remove and return the object under this key, which the caller may modify; None if there is none (any
    more)."""
    return _held.pop(key, None)
