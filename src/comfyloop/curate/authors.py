"""How much of what a turn learns anew may be one author's. Pure.

Whoever sends most would otherwise decide what a version is like, by zeal or by intent. The rest of an author's samples
is not lost: it waits, oldest first, and is new to the next turn again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from comfyloop.records import Sample

ALWAYS = 12
"""Samples of an author that are taken in any case: an ordinary turn is not cut smaller."""


def over_the_cap(fresh: Sequence[Sample], share: float, least: int = ALWAYS) -> list[Sample]:
    """The samples that wait, of those that are new, in order of arrival.

    Args:
        share: Most of the turn's new samples that one author may make up, where several have sent some. Among so
            few authors that it cannot be kept (two of them at 0.4), all have the same.
        least: So many of an author's are taken in any case.
    """
    most = max(_most_each(Counter(sample.author for sample in fresh), share), least)
    taken: Counter[str] = Counter()
    waiting = []
    for sample in fresh:
        taken[sample.author] += 1
        if taken[sample.author] > most:
            waiting.append(sample)
    return waiting


def _most_each(counts: Mapping[str, int], share: float) -> int:
    """The most of one author's with which nobody has more than the share of what is then taken."""
    fair = max(share, 1 / max(len(counts), 1))
    for most in range(max(counts.values(), default=0), 0, -1):
        taken = [min(count, most) for count in counts.values()]
        if max(taken) <= fair * sum(taken) + 1e-9:
            return most
    return 0
