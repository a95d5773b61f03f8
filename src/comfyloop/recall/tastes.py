"""The taste in a project's pictures, from the newest picks and ratings.

Computed for each request: the newest feedback names the pictures, their features are cached in memory, and the
model is fitted in milliseconds. The next grid therefore takes the last pick into account, and a deleted pick is
forgotten at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from comfyloop.errors import ComfyLoopError
from comfyloop.media.decoding import BadPicture, read_picture
from comfyloop.media.looks import looks
from comfyloop.records import Feedback, ImagePicked, ImageRated
from comfyloop.store import Store, feedback
from comfyloop.taste import Comparison, Taste, Vector, learn, ranked

KINDS = ("image_picked", "image_rated")
NEWEST = 200
"""Pieces of feedback that are looked at."""
MOST = 400
"""Comparisons, the newest."""
_SEEN = 4096
_PIXELS = 2**18


class Likes(NamedTuple):
    """One picture was liked better than another, by their hashes."""

    better: str
    worse: str
    choice: tuple[str, ...]


class Tastes:
    """The tastes of all projects. Thread-safe.

    Args:
        max_image_pixels: Larger pictures are not looked at.
    """

    def __init__(self, store: Store, max_image_pixels: int) -> None:
        self._store, self._max_image_pixels = store, max_image_pixels
        self._lock = threading.Lock()
        self._vectors: OrderedDict[str, Vector] = OrderedDict()

    def of(self, project: str) -> Taste:
        """The current taste of a project. Raises StorageError."""
        with self._store.read() as conn:
            items = [item for _, item in feedback.of_kinds(conn, project, KINDS, limit=NEWEST)]
        pairs = []
        for one in comparisons(items)[:MOST]:
            better, worse = self._look(one.better), self._look(one.worse)
            if better is not None and worse is not None:
                pairs.append(Comparison(better, worse, one.choice))
        return learn(pairs)

    def rank(self, project: str, pictures: Sequence[str]) -> tuple[Taste, dict[str, float]]:
        """The taste, and scores of pictures (by their hashes, which are stored) with the best first.

        Unreadable pictures come last; if the taste is not known, the order does not change.

        Raises:
            StorageError.
        """
        taste = self.of(project)
        vectors = {sha: vector for sha in pictures if (vector := self._look(sha)) is not None}
        if not taste.known:
            return taste, dict.fromkeys(pictures, 0.0)
        scores = ranked(taste, vectors)
        least = min(scores.values(), default=0.0)
        return taste, scores | {sha: least for sha in pictures if sha not in scores}

    def _look(self, sha256: str) -> Vector | None:
        with self._lock:
            if sha256 in self._vectors:
                self._vectors.move_to_end(sha256)
                return self._vectors[sha256]
        try:
            data = self._store.blobs.get(sha256)
            vector = looks(read_picture(data, _PIXELS, self._max_image_pixels))
        except (ComfyLoopError, BadPicture):
            return None  # deleted, or no picture that can be read: it says nothing
        with self._lock:
            self._vectors[sha256] = vector
            while len(self._vectors) > _SEEN:
                self._vectors.popitem(last=False)
        return vector


def comparisons(items: Sequence[Feedback]) -> list[Likes]:
    """Comparisons of pictures from feedback (newest first): a pick over its alternatives, a rating of 4-5 over one
    of 1-2 for the same prompt by the same person. Of several claims about the same thing the newest counts."""
    pairs: list[Likes] = []
    claims: set[tuple[str, ...]] = set()
    ratings: dict[tuple[str, str], list[ImageRated]] = {}
    for item in items:
        if isinstance(item, ImagePicked):
            key = ("pick", item.author, item.prompt, *sorted({*item.picked, *item.over}))
            if key not in claims:
                choice = ("pick", item.id)
                pairs += [
                    Likes(better, worse, choice)
                    for better in item.picked
                    for worse in item.over
                    if better != worse
                ]
            claims.add(key)
        elif isinstance(item, ImageRated):
            key = ("rating", item.author, item.image)
            if key not in claims:
                ratings.setdefault((item.author, " ".join(item.prompt.split())), []).append(item)
            claims.add(key)
    for (author, prompt), rated in ratings.items():
        pairs += [
            Likes(good.image, bad.image, ("rating", author, prompt))
            for good in rated
            if good.rating > 3
            for bad in rated
            if bad.rating < 3
        ]
    return pairs
