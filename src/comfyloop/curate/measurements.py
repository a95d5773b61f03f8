"""What filters have found out, kept by the content that it is about.

In `cache_dir/measurements.db`: what can be found out again, so that nothing is lost with it. The name of what is
measured tells everything else that it depends on: a version of the method, the weights of a model.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from comfyloop.curate.samples import Draft

log = logging.getLogger(__name__)

FILE = "measurements.db"
_MANY = 500
"""Keys in one question to the database."""

_About = Literal["picture", "sample"]
Taken = dict[tuple[_About, str], dict[str, Any]]
"""What is measured, by what it is about and its name: the values by their keys."""


class Measurements:
    """Not thread-safe; one a curation.

    Args:
        folder: Where they are kept; None: nowhere.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = folder / FILE if folder is not None else None
        self._at_hand: dict[tuple[_About, str], dict[str, Any]] = {}  # several filters go by one measurement

    def of_samples(
        self,
        what: str,
        drafts: Sequence[Draft],
        measure: Callable[[Sequence[Draft]], Iterable[Any]],
        *,
        large: bool = False,
    ) -> list[Any]:
        """A value (JSON) a draft. Only those that are not known are measured, all at once; None, where that could not
        be done, is not remembered.

        Args:
            what: What is measured, e.g. "secret/1"; its number changes when the method does.
            large: Values are read from the disk each time: all of them would not fit into memory.
        """
        of = {draft.sample.id: draft for draft in drafts}
        values = self._of("sample", what, list(of), lambda ids: measure([of[id] for id in ids]), large)
        return [values[draft.sample.id] for draft in drafts]

    def of_pictures(
        self,
        what: str,
        hashes: Sequence[str],
        measure: Callable[[Sequence[str]], Iterable[Any]],
        *,
        large: bool = False,
    ) -> list[Any]:
        """The same of pictures, by the hashes of their bytes."""
        values = self._of("picture", what, list(dict.fromkeys(hashes)), measure, large)
        return [values[sha] for sha in hashes]

    def taken(self) -> Taken:
        """What is at hand, for `take` of others."""
        return {
            what: {key: value for key, value in found.items() if value is not None}
            for what, found in self._at_hand.items()
        }

    def take(self, taken: Taken) -> None:
        """Keep what was measured elsewhere."""
        for (about, what), found in taken.items():
            self._keep(about, what, found)
            if self._file is None:
                self._at_hand.setdefault((about, what), {}).update(found)

    def have(self, what: str, drafts: Sequence[Draft]) -> list[bool]:
        """Whether something of that name is kept of each of the drafts."""
        ids = [draft.sample.id for draft in drafts]
        known = self._load("sample", what, ids) | self._at_hand.get(("sample", what), {})
        return [id in known for id in ids]

    def _of(
        self,
        about: _About,
        what: str,
        keys: Sequence[str],
        measure: Callable[[Sequence[str]], Iterable[Any]],
        large: bool,
    ) -> dict[str, Any]:
        known = {} if large and self._file else self._at_hand.setdefault((about, what), {})
        known |= self._load(about, what, [key for key in keys if key not in known])
        new = [key for key in keys if key not in known]
        if new:
            found = dict(zip(new, measure(new), strict=True))
            self._keep(about, what, {key: value for key, value in found.items() if value is not None})
            known |= found
        return known

    def _load(self, about: _About, what: str, keys: Sequence[str]) -> dict[str, Any]:
        if self._file is None or not self._file.exists():
            return {}
        known: dict[str, Any] = {}
        try:
            with closing(_open(self._file)) as conn:
                for some in _in_pieces(keys):
                    marks = ",".join("?" * len(some))
                    rows = conn.execute(
                        f"SELECT key, value FROM measurements WHERE about = ? AND what = ? AND key IN ({marks})",
                        (about, what, *some),
                    )
                    known |= {key: json.loads(value) for key, value in rows}
        except (sqlite3.Error, ValueError) as error:
            log.warning("What filters have measured cannot be read from %s: %s", self._file, error)
        return known

    def _keep(self, about: _About, what: str, found: dict[str, Any]) -> None:
        """A disk that refuses is no error: it is measured again another time."""
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(_open(self._file)) as conn, conn:
                conn.executemany(
                    "INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?)",
                    ((about, what, key, json.dumps(value)) for key, value in found.items()),
                )
        except (OSError, sqlite3.Error) as error:
            log.warning("What filters have measured is not kept in %s: %s", self._file, error)


def forget(cache_dir: Path, pictures: Collection[str]) -> None:
    """What was measured of these pictures, and of all samples: nothing tells which of those were made of them.

    Raises:
        OSError: The disk refuses.
    """
    file = cache_dir / FILE
    if not file.exists():
        return
    try:
        with closing(_open(file)) as conn, conn:
            conn.execute("PRAGMA secure_delete = ON")
            conn.execute("DELETE FROM measurements WHERE about = 'sample'")
            conn.executemany(
                "DELETE FROM measurements WHERE about = 'picture' AND key = ?", ((sha,) for sha in pictures)
            )
    except sqlite3.DatabaseError:
        file.unlink(missing_ok=True)  # it can be made again


def _open(file: Path) -> sqlite3.Connection:
    conn = sqlite3.connect(file, timeout=30)
    try:
        conn.execute("PRAGMA synchronous = OFF")  # what a power cut takes is measured again
        conn.execute(
            "CREATE TABLE IF NOT EXISTS measurements "
            "(about TEXT, what TEXT, key TEXT, value TEXT, PRIMARY KEY (about, what, key)) WITHOUT ROWID"
        )
    except sqlite3.Error:
        conn.close()
        raise
    return conn


def _in_pieces(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), _MANY):
        yield keys[start : start + _MANY]
