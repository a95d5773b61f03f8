"""Training or hold-out, by group and for good.

The store keeps the side of every group it has seen; groups new to it are numbered in order of arrival and
each n-th is held out. So a group is never on both sides, and none moves when data is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comfyloop.records import Sample
from comfyloop.settings import Settings
from comfyloop.store import Store, folds


@dataclass(frozen=True)
class Split:
    train: tuple[Sample, ...]
    holdout: tuple[Sample, ...]


def split(store: Store, project: str, samples: Sequence[Sample], settings: Settings) -> Split:
    """Splits samples (in order of arrival) by the fold of their group; replay always trains."""
    groups = list(dict.fromkeys(sample.group for sample in samples if not sample.replay))
    with store.begin() as connection:
        side = folds.assign(connection, project, groups, settings.holdout_every)
    held = [not sample.replay and side[sample.group] == "holdout" for sample in samples]
    return Split(
        train=tuple(sample for sample, out in zip(samples, held, strict=True) if not out),
        holdout=tuple(sample for sample, out in zip(samples, held, strict=True) if out),
    )
