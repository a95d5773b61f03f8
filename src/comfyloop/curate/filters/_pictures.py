"""What can be counted in a picture, at one reading: several filters go by it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from comfyloop import sight
from comfyloop.curate.rulings import KEEP, Ground, Ruling, against
from comfyloop.curate.samples import Draft
from comfyloop.errors import DamagedBlob, NotFound
from comfyloop.media.decoding import BadPicture, opened, read_picture

PIXELS = 512 * 512
MOST_PIXELS = 2**28
BORDER = 6
"""Levels, of 255, by which pixels of one ground differ."""


class PictureMeasures(NamedTuple):
    width: int
    height: int
    sharpness: float  # variance of the Laplacian of what is light and dark
    contrast: float  # standard deviation of the same, of 255
    light: float  # its mean, without an even ground
    blown: float  # share of it that is clipped at white in two channels at least
    clipped: float  # in one channel at least: what saturated colours become
    crushed: float  # share of it that is black


def counted(ground: Ground, drafts: Sequence[Draft]) -> dict[str, PictureMeasures | None]:
    """Of all pictures of drafts; None where one cannot be read."""
    hashes = list(dict.fromkeys(sha for draft in drafts for sha in draft.pictures))

    def measure(hashes: Sequence[str]) -> Iterator[PictureMeasures | None]:
        return (counts_of(ground.pictures.read, sha) for sha in hashes)

    told = ground.measurements.of_pictures("pictures/2", hashes, measure)
    return {sha: PictureMeasures(*one) if one else None for sha, one in zip(hashes, told, strict=True)}


def judged(
    drafts: Sequence[Draft],
    ground: Ground,
    score: Callable[[PictureMeasures], float],
    problem: Callable[[PictureMeasures], str],
    *,
    ask: bool = False,
) -> Iterator[Ruling]:
    """What a filter says that looks at each picture alone: the first one with a problem decides.

    Args:
        ask: What it measures may be meant, whoever sent it: a person is asked.
    """
    counts = counted(ground, drafts)
    for draft in drafts:
        shown = [counts[sha] for sha in draft.pictures]
        read = [one for one in shown if one is not None]
        bad = next(((one, said) for one in read if (said := problem(one))), None)
        if bad is not None:
            told = round(score(bad[0]), 3)
            yield Ruling("unsure", bad[1], told) if ask else against(draft, bad[1], told)
        elif len(read) < len(shown):
            yield Ruling("unmeasured", "a picture of it cannot be read")
        else:
            yield Ruling("keep", score=round(score(read[0]), 3)) if read else KEEP


def asked(drafts: Sequence[Draft], ground: Ground, program: str) -> Iterator[list[Any] | Ruling]:
    """What a program of `sight` says of the pictures of each draft; a ruling where there are none, or it cannot say."""
    hashes = list(dict.fromkeys(sha for draft in drafts for sha in draft.pictures))
    missing = sight.missing(program) if hashes else ""
    told = (
        [None] * len(hashes)
        if missing
        else ground.measurements.of_pictures(
            f"{program}/1",
            hashes,
            lambda new: sight.ask(program, [functools.partial(ground.pictures.read, sha) for sha in new]),
        )
    )
    of = dict(zip(hashes, told, strict=True))
    for draft in drafts:
        shown = [of[sha] for sha in draft.pictures]
        if None in shown:
            yield Ruling("unmeasured", missing or "a picture of it was not read: the service's log says why")
        else:
            yield shown or KEEP


def counts_of(read: Callable[[str], bytes], sha: str) -> PictureMeasures | None:
    try:
        data = read(sha)
        with opened(data) as header:
            width, height = header.size
        picture = np.asarray(read_picture(data, PIXELS, MOST_PIXELS), dtype=np.float32)
    except (NotFound, DamagedBlob, BadPicture, OSError, SyntaxError, ValueError):
        return None
    return counts(picture, width, height)


def counts(picture: Any, width: int, height: int) -> PictureMeasures:
    """
    Args:
        picture: [h, w, 3], 0 to 255, perhaps scaled down from width x height.
    """
    grey = picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    edges = (
        grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
        if min(grey.shape) > 2
        else np.zeros(1)
    )
    subject = picture[~_ground(picture)]
    if len(subject) < 0.02 * grey.size:  # one colour all over
        subject = picture.reshape(-1, 3)
    light = subject @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    told = (
        edges.var(), grey.std(), light.mean(),
        ((subject >= 254).sum(-1) >= 2).mean(), (subject >= 254).any(-1).mean(), (light <= 4).mean(),
    )  # fmt: skip
    return PictureMeasures(width, height, *(round(float(value), 4) for value in told))


def _ground(picture: Any) -> Any:
    """[h, w]: whether a pixel has the colour that most of the edge has: paper, or a studio's wall."""
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    usual = np.median(edge, axis=0)
    if (np.abs(edge - usual).max(-1) <= BORDER).mean() < 0.6:
        return np.zeros(picture.shape[:2], dtype=bool)
    return np.abs(picture - usual).max(-1) <= BORDER
