"""A service's home, kept as it was between two rounds, so that a bench that was killed goes on from there."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

_DATABASE = "comfyloop.db"
_ROUNDS = "rounds-played"


def keep(home: Path, rounds: int) -> None:
    """Copy the home of a service that runs and rests; the copy appears whole in place of the one before."""
    making, copy = home.with_suffix(".part"), _copy_of(home)
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(home, making, ignore=shutil.ignore_patterns(f"{_DATABASE}*", "engines", "port", "*.log"))
    with (
        contextlib.closing(sqlite3.connect(home / _DATABASE)) as source,
        contextlib.closing(sqlite3.connect(making / _DATABASE)) as target,
    ):
        source.backup(target)
    (making / _ROUNDS).write_text(str(rounds))
    shutil.rmtree(copy, ignore_errors=True)
    making.rename(copy)


def restore(home: Path) -> int:
    """Make the home what was kept of it, or leave none; how many rounds it has seen."""
    copy = _copy_of(home)
    shutil.rmtree(home, ignore_errors=True)
    if not (copy / _ROUNDS).exists():
        return 0
    shutil.copytree(copy, home)
    return int((home / _ROUNDS).read_text())


def forget(home: Path) -> None:
    """Remove a home and what was kept of it."""
    for folder in (home, _copy_of(home), home.with_suffix(".part")):
        shutil.rmtree(folder, ignore_errors=True)


def _copy_of(home: Path) -> Path:
    return home.with_suffix(".kept")
