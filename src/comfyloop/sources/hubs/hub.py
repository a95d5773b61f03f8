"""What is asked of a hub of data sets, what its refusals mean, and how they are waited out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from comfyloop.errors import ComfyLoopError, EngineUnavailable, InvalidInput, NotFound
from comfyloop.hub_clients import Meaning, understood

PAUSES = (1.0, 4.0, 15.0)
"""Seconds before each new try of what a hub refused for now."""
LONGEST_PAUSE = 60.0

T = TypeVar("T")


class HubFile(NamedTuple):
    path: str
    bytes: int


class HubListing(NamedTuple):
    files: list[HubFile]
    licence: str


class Hub(Protocol):
    """Raises NotFound, InvalidInput and EngineUnavailable, with what to do."""

    def list(self, id: str, revision: str | None) -> HubListing: ...

    def get(self, id: str, revision: str | None, file: HubFile, folder: Path) -> None:
        """Put a file below a folder; one that is cut off goes on the next time."""


class ForNow(Exception):
    """A hub refuses for now: too many requests, a fault of its own, a connection that was cut."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


class HubNames(NamedTuple):
    """What a hub and its token are called in sentences."""

    hub: str
    token: str


def ask(
    named: HubNames,
    id: str,
    revision: str | None,
    do: Callable[[], T],
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """What `do` gives, which calls a hub's client; tried anew while the hub refuses for now.

    Raises:
        NotFound, InvalidInput: The hub has it not, or does not give it; says what to do.
        EngineUnavailable: It still refuses after the last try.
    """
    hub = named.hub
    for seconds in (*PAUSES, None):
        try:
            try:
                return do()
            except Exception as error:
                raise _said(named, id, revision, error) from error
        except ForNow as error:
            if seconds is None:
                raise EngineUnavailable(
                    f"{hub} did not answer: {error}.",
                    "Start it again later: what has come stays.",
                    retry_after=60,
                ) from error
            pause(min(max(seconds, error.after), LONGEST_PAUSE))
    raise AssertionError


def _said(named: HubNames, id: str, revision: str | None, error: Exception) -> Exception:
    """What an error of a client is to us; itself where it is none of the hub's."""
    if isinstance(error, ComfyLoopError):
        return error
    said = understood(error)
    match said.meaning:
        case Meaning.OFFLINE:
            return InvalidInput("HF_HUB_OFFLINE is set, so no hub is asked.", "Unset it, and start again.")
        case Meaning.GATED:
            return InvalidInput(
                f"The data set {id} is gated.",
                f"Ask for access on its page, and set {named.token} to a token that may read it.",
            )
        case Meaning.NO_REVISION:
            return NotFound(f"The data set {id} has no revision {revision}.", "Leave it out for the newest.")
        case Meaning.NO_FILE:
            return NotFound(f"A file of the data set {id} is gone.", "Start it again.")
        case Meaning.NOT_THERE | Meaning.NOT_ALLOWED:
            return NotFound(
                f"{named.hub} has no data set {id}, or does not show it.",
                f"Check its id; for a private one set {named.token} to a token that may read it.",
            )
        case Meaning.NO_ID:
            return InvalidInput(f"{named.hub} does not take {id!r}: {said.told}.", "An id reads OWNER/NAME.")
        case Meaning.TOO_OFTEN | Meaning.DAMAGED | Meaning.FOR_NOW:
            return ForNow(said.told, said.wait)
    return error
