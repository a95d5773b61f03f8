"""Training or hold-out, by group and for good.

The store keeps the side of every group it has seen; groups new to it are numbered in order of arrival, those of
corrections for themselves, and some are held out. So a group is never on both sides, and none moves when data is
added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comfyloop.records import Sample
from comfyloop.settings import Settings
from comfyloop.store import Store, folds

CORRECTION, ACCEPTED, RATED, PICTURE = "correction", "accepted", "rated", "picture"


@dataclass(frozen=True)
class Split:
    train: tuple[Sample, ...]
    holdout: tuple[Sample, ...]


def stratum_of(sample: Sample) -> str:
    """Among which groups a sample's is counted: what the gate asks of each is asked of enough of them."""
    if sample.kind in ("captioned_image", "image_pair"):
        return PICTURE
    if sample.kind == "labelled":
        return RATED
    return ACCEPTED if sample.origin == "answer_accepted" else CORRECTION


def split(store: Store, project: str, samples: Sequence[Sample], settings: Settings) -> Split:
    """Splits samples (in order of arrival) by the fold of their group; replay always trains."""
    groups: dict[str, str] = {}
    for sample in samples:
        if not sample.replay:
            stratum = stratum_of(sample)
            if groups.setdefault(sample.group, stratum) != CORRECTION and stratum == CORRECTION:
                groups[sample.group] = stratum  # one correction makes a group one of corrections
    with store.begin() as connection:
        side = folds.assign(connection, project, groups, settings.holdout_every, settings.holdout_first)
    held = [not sample.replay and side[sample.group] == "holdout" for sample in samples]
    return Split(
        train=tuple(sample for sample, out in zip(samples, held, strict=True) if not out),
        holdout=tuple(sample for sample, out in zip(samples, held, strict=True) if out),
    )
