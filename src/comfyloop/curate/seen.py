"""What is seen of pictures, kept by their hashes: a turn reads the new ones, not all that the project has.

Kept in `cache_dir/pictures.jsonl`, a line a picture, the newest counts. A picture on this machine's disk whose file has
another size or time than when it was read is read again: it may be damaged, or mended.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from comfyloop.durable import write_whole
from comfyloop.errors import DamagedBlob, NotFound
from comfyloop.media.decoding import BadPicture, opened, read_picture, too_narrow
from comfyloop.store import Blobs

log = logging.getLogger(__name__)

FILE = "pictures.jsonl"
LOOK_PIXELS = 256 * 256
MOST_PIXELS = 2**28
MOST = 200_000
"""Pictures that are remembered."""


class Look(NamedTuple):
    """What tells one picture from another: a perceptual hash of 64 bits, and 8 x 8 colours."""

    bits: int
    colours: np.ndarray


@dataclass(frozen=True)
class _Seen:
    stamp: str  # size and time of the file; empty where it is on no disk of this machine
    form: str  # how a file of this format ends; empty: no picture that processors take
    look: str | None = None  # hex: the hash, then the colours; empty: cannot be read; None: not looked at


class SeenPictures:
    """Not thread-safe.

    Args:
        folder: Where it is kept; None: nowhere.
    """

    def __init__(self, blobs: Blobs, folder: Path | None = None) -> None:
        self._blobs = blobs
        self._file = folder / FILE if folder is not None else None
        self._known = _load(self._file) if self._file is not None else {}
        self._new: set[str] = set()
        self._missing: set[str] = set()
        self._checked: set[str] = set()  # files that were looked for: once a curation

    def renew(self) -> bool:
        """Look at the files again, of all pictures that were asked about; whether all are as they were."""
        if any(self._blobs.exists(sha) for sha in self._missing):
            return False
        asked = list(self._checked)
        self._checked.clear()
        before = [self._known[sha] for sha in asked]
        return all(self._of(sha) is seen for sha, seen in zip(asked, before, strict=True))

    def exists(self, sha: str) -> bool:
        if self._blobs.exists(sha):
            return True
        self._missing.add(sha)
        return False

    def is_whole(self, sha: str) -> bool:
        return bool(self.form(sha))

    def read(self, sha: str) -> bytes:
        """Raises NotFound, DamagedBlob."""
        return self._blobs.get(sha)

    def form(self, sha: str) -> str:
        """How a file of the picture's format ends ("png"); empty where its bytes are not those that were stored, or no
        picture that processors take: it would end every run."""
        return self._of(sha).form

    def look(self, sha: str) -> Look | None:
        """None where it cannot be read."""
        seen = self._of(sha)
        if seen.look is None:
            seen = self._put(sha, replace(seen, look=self._read_look(sha) if seen.form else ""))
        assert seen.look is not None
        if not seen.look:
            return None
        colours = np.frombuffer(bytes.fromhex(seen.look[16:]), dtype=np.uint8).reshape(8, 8, 3)
        return Look(int(seen.look[:16], 16), colours.astype(np.float32))

    def keep(self) -> None:
        """Write down what is new. A disk that refuses is no error: it is read again another time."""
        if self._file is None or not self._new:
            return
        lines = "".join(_line(sha, self._known[sha]) for sha in sorted(self._new))
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="ascii") as file:
                file.write(lines)
            if len(self._known) > MOST:
                _rewrite(self._file, dict(list(self._known.items())[-MOST // 2 :]))
        except OSError as error:
            log.warning("What was seen of pictures is not kept in %s: %s", self._file, error)
        self._new.clear()

    def _of(self, sha: str) -> _Seen:
        if sha not in self._checked:
            self._checked.add(sha)
            stamp, seen = self._blobs.stamp(sha), self._known.get(sha)
            if seen is None or seen.stamp != stamp:
                self._put(sha, _Seen(stamp, self._read_form(sha)))
        return self._known[sha]

    def _put(self, sha: str, seen: _Seen) -> _Seen:
        self._known[sha] = seen
        self._new.add(sha)
        return seen

    def _read_look(self, sha: str) -> str:
        try:
            found = look_at(self._blobs.get(sha))
        except (NotFound, DamagedBlob):
            return ""
        if found is None:
            return ""
        return found.bits.to_bytes(8).hex() + found.colours.astype(np.uint8).tobytes().hex()

    def _read_form(self, sha: str) -> str:
        try:
            with opened(self._blobs.get(sha)) as image:
                if too_narrow(*image.size):
                    return ""
                return {"JPEG": "jpg"}.get(image.format or "", (image.format or "bin").lower())
        except (NotFound, DamagedBlob, OSError, SyntaxError, ValueError):
            return ""


def look_at(data: bytes) -> Look | None:
    """None where it is no picture that can be read."""
    try:
        picture = read_picture(data, LOOK_PIXELS, MOST_PIXELS)
    except (BadPicture, OSError):
        return None
    bits = _hasher()(picture).hash.flatten()
    colours = np.asarray(picture.resize((8, 8)), dtype=np.float32)
    return Look(int("".join("1" if bit else "0" for bit in bits), 2), colours)


def forget(cache_dir: Path, pictures: Collection[str]) -> None:
    """Raises OSError: The disk refuses."""
    file = cache_dir / FILE
    known = _load(file)
    if known.keys() & set(pictures):
        _rewrite(file, {sha: seen for sha, seen in known.items() if sha not in pictures})


def _load(file: Path) -> dict[str, _Seen]:
    known: dict[str, _Seen] = {}
    try:
        lines = file.read_text(encoding="ascii").split("\n")
    except (OSError, ValueError):
        return known
    for line in lines:
        try:
            told: dict[str, Any] = json.loads(line)
            sha = told.pop("sha")
            known[sha] = _Seen(**told)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # the end of a torn line is only a reason to read that picture again
    return known


def _rewrite(file: Path, known: dict[str, _Seen]) -> None:
    write_whole(file, "".join(_line(sha, seen) for sha, seen in known.items()), "ascii")


def _line(sha: str, seen: _Seen) -> str:
    return json.dumps({"sha": sha, **asdict(seen)}) + "\n"


@functools.cache
def _hasher() -> Callable[..., Any]:
    import imagehash  # with scipy: only where there are pictures

    hasher: Callable[..., Any] = imagehash.phash
    return hasher
