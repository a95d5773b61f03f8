"""What is asked of a hub, and how its refusals are waited out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from comfyloop.errors import EngineUnavailable

PAUSES = (1.0, 4.0, 15.0)
"""Seconds before each new try of what a hub refused for now."""
LONGEST_PAUSE = 60.0

T = TypeVar("T")


class HubFile(NamedTuple):
    path: str
    bytes: int


class Listing(NamedTuple):
    files: list[HubFile]
    licence: str


class Hub(Protocol):
    """Raises NotFound, InvalidInput and EngineUnavailable, with what to do."""

    def list(self, id: str, revision: str | None) -> Listing: ...

    def get(self, id: str, revision: str | None, file: HubFile, folder: Path) -> None:
        """Put a file below a folder; one that is cut off goes on the next time."""


class ForNow(Exception):
    """A hub refuses for now: too many requests, a fault of its own, a connection that was cut."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


def patiently(hub: str, do: Callable[[], T], pause: Callable[[float], object] = time.sleep) -> T:
    """What `do` gives, which is tried anew while it raises ForNow.

    Raises:
        EngineUnavailable: It still does after the last try.
    """
    for seconds in (*PAUSES, None):
        try:
            return do()
        except ForNow as error:
            if seconds is None:
                raise EngineUnavailable(
                    f"{hub} did not answer: {error}.",
                    "Start it again later: what has come stays.",
                    retry_after=60,
                ) from error
            pause(min(max(seconds, error.after), LONGEST_PAUSE))
    raise AssertionError
