"""Near copies that a snapshot left out, gathered around what was kept of them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from comfyloop.records import Dropped

COPIES = {
    "duplicate": "same as ",
    "document_minhash_deduplicator": " the same as ",
    "image_deduplicator": "the same picture and words as ",
}
"""Filters that leave out what is all but there already, and after what their detail names it."""


class Cluster(NamedTuple):
    """Pieces of feedback that say the same.

    Attributes:
        kept: Ids of the feedback that the example which stayed was made of.
        copies: What was left out for it.
    """

    kept: tuple[str, ...]
    copies: tuple[Dropped, ...]


def clusters(details: Iterable[Dropped]) -> list[Cluster]:
    """The largest first. A copy of a copy is one of what that is a copy of."""
    around: dict[tuple[str, ...], list[Dropped]] = {}
    for dropped in details:
        named = COPIES.get(dropped.reason, "")
        if named and named in dropped.detail:
            kept = tuple(dropped.detail.split(named, 1)[1].split(", "))
            around.setdefault(kept, []).append(dropped)
    by_id = {dropped.feedback: kept for kept, found in around.items() for dropped in found}
    gathered: dict[tuple[str, ...], list[Dropped]] = {}
    for kept, found in around.items():
        gathered.setdefault(_first(kept, by_id), []).extend(found)
    made = [Cluster(kept, tuple(found)) for kept, found in gathered.items()]
    return sorted(made, key=lambda cluster: -len(cluster.copies))


def _first(kept: tuple[str, ...], by_id: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    passed: Collection[tuple[str, ...]] = {kept}
    while (further := by_id.get(kept[0])) is not None and further not in passed:
        passed = {*passed, further}
        kept = further
    return kept
