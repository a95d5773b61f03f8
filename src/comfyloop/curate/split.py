"""Training or hold-out, by group and for good.

The store keeps the side of every group it has seen; groups new to it are numbered in order of arrival, those of
corrections for themselves, and some are held out. So a group is never on both sides, and none that was trained on is
ever held out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from comfyloop.records import Sample
from comfyloop.settings import Settings
from comfyloop.store import Store, splits

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


def split(
    store: Store,
    project: str,
    samples: Sequence[Sample],
    settings: Settings,
    judged: Collection[str] = (),
    outdated: Sequence[Sample] = (),
) -> Split:
    """Splits samples (in order of arrival) by the side of their group; replay always trains.

    Of what came after a version was judged, again every second correction is held out until there are
    `settings.holdout_first`: what it has mastered cannot show that the next one is better. A correction is held out to
    judge by, not to be lost: of those that judged the live version the newest `settings.holdout_kept` go on judging,
    the others are trained on from now on, and so is what is beyond the newest `settings.gate_max_items`.

    Args:
        judged: Ids of the samples by which the live version was judged.
        outdated: Those of before somebody changed his mind: what came after them is judged by, too, as after a version.
    """
    groups: dict[str, str] = {}
    for sample in samples:
        if not sample.replay:
            stratum = stratum_of(sample)
            if groups.setdefault(sample.group, stratum) != CORRECTION and stratum == CORRECTION:
                groups[sample.group] = stratum  # one correction makes a group one of corrections
    # Accepted answers only have to stay: a few of them judge every version.
    old = {s.group for s in samples if s.id in judged and groups.get(s.group, ACCEPTED) != ACCEPTED}
    past = {group: groups[group] for group in old} | {s.group: stratum_of(s) for s in outdated}
    with store.begin() as connection:
        side = splits.assign(
            connection, project, groups, settings.holdout_every, settings.holdout_first, past
        )
        held = [group for group in groups if side[group] == "holdout"]
        over = _beyond(held, groups, settings) | _done(held, groups, old, settings)
        splits.release(connection, project, over)
    side |= dict.fromkeys(over, "train")
    left_out = [not sample.replay and side[sample.group] == "holdout" for sample in samples]
    return Split(
        train=tuple(sample for sample, out in zip(samples, left_out, strict=True) if not out),
        holdout=tuple(sample for sample, out in zip(samples, left_out, strict=True) if out),
    )


def _beyond(held: Sequence[str], groups: Mapping[str, str], settings: Settings) -> set[str]:
    """Held-out groups of each stratum beyond the newest that the gate looks at."""
    over: set[str] = set()
    for stratum in (CORRECTION, ACCEPTED, RATED):
        own = [group for group in held if groups[group] == stratum]
        over.update(own[: -settings.gate_max_items])
    return over


def _done(
    held: Sequence[str], groups: Mapping[str, str], judged: Collection[str], settings: Settings
) -> set[str]:
    """Held-out corrections that judged a promoted version and are not needed to judge the next one."""
    own = [group for group in held if group in judged and groups[group] == CORRECTION]
    return set(own[: max(len(own) - settings.holdout_kept, 0)])
