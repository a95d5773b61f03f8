"""The service's token where none is set: made at the first start that others can reach, and kept in `home`."""

from __future__ import annotations

import secrets
from pathlib import Path

from comfyloop.durable import replace_whole
from comfyloop.errors import StorageError

NAME = "token"


def stored(home: Path) -> str:
    """The token that an earlier start made; empty where none did, or where this user may not read it."""
    try:
        return (home / NAME).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def ensure(home: Path) -> str:
    """The stored token, made if need be, in a file that its owner alone can read.

    Raises:
        StorageError: It cannot be written.
    """
    if token_there := stored(home):
        return token_there
    token = secrets.token_urlsafe(24)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_whole(home / NAME, lambda draft: _write_for_owner(draft, token))
    except OSError as error:
        raise StorageError(
            f"No token can be written into {home}: {error.strerror}.",
            "Set COMFYLOOP_TOKEN, or mend that folder's rights.",
        ) from error
    return token


def _write_for_owner(file: Path, token: str) -> None:
    file.touch(mode=0o600)
    file.write_text(token + "\n", "ascii")
