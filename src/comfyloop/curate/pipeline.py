"""From all feedback of a project to a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfyloop.curate import filters
from comfyloop.curate import replay as replays
from comfyloop.curate.pictures import picked_drafts, rated_drafts
from comfyloop.curate.prompts import prompt_drafts
from comfyloop.curate.report import CurationReport, report_of
from comfyloop.curate.samples import Draft, drafts_of, group_of, newest
from comfyloop.curate.snapshot import IMAGE_RECIPE_KINDS, RECIPE_KINDS, write
from comfyloop.curate.split import split
from comfyloop.errors import DataError
from comfyloop.records import (
    Dropped,
    Feedback,
    Generation,
    ImagePicked,
    ImageRated,
    Message,
    Sample,
    Snapshot,
)
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, generations, snapshots

_PAGE = 1000

Replay = Sequence[Sample] | Callable[[int], Sequence[Sample]]
"""Replay samples, or a function that makes as many as it is asked for."""


@dataclass(frozen=True)
class NothingToTrain:
    """No sample of the kind that the recipe needs is left; `reason` says so to a person."""

    reason: str
    report: CurationReport


def build(
    store: Store, project: str, settings: Settings, *, replay: Replay = (), images: bool = False
) -> Snapshot | NothingToTrain:
    """Curates all feedback of a project and stores the snapshot.

    The same feedback gives the same snapshot: its id is then one that exists already, and `feedback_seq` is
    the newest feedback that was looked at now.

    Args:
        replay: General questions with the base model's answers. A function is called once, with the number
            needed, outside any transaction; it may take as long as it likes.
        images: Pictures for the image model are something to train on, too.

    Raises:
        NotFound: The project does not exist.
        StorageError: The disk or the database refuses.
    """
    if settings.recipe not in RECIPE_KINDS:
        known = ", ".join(RECIPE_KINDS)
        raise DataError(f"{settings.recipe!r} is no recipe.", f"Set `recipe` to one of {known}.")
    seq, items, made = _read(store, project)
    drafts, dropped = _drafts(items, made)
    kept, refused = filters.apply(drafts, settings, store.blobs.exists)
    samples = [draft.sample for draft in kept]
    sides = split(store, project, samples, settings)
    kind = RECIPE_KINDS[settings.recipe]
    rows = sum(sample.kind == kind for sample in sides.train)
    wanted = replays.needed(rows, settings.replay_share) if kind == "sft" else 0
    chosen = _replayed(replay, samples, wanted) if rows else ()
    report = report_of(project, len(items), sides, chosen, (*dropped, *refused), settings, wanted)
    pictures = sum(s.kind == IMAGE_RECIPE_KINDS[settings.image_recipe] for s in sides.train) if images else 0
    if not rows and pictures < settings.image_min_samples:
        return NothingToTrain(_why(kind, settings.recipe, report), report)
    id, path = write(settings.home, project, sides, chosen, report, store.blobs)
    snapshot = Snapshot(
        id=id,
        project=project,
        path=str(path),
        train=len(sides.train),
        holdout=len(sides.holdout),
        replay=len(chosen),
        by_kind=_by_kind(samples),
        dropped=report.dropped,
        feedback_seq=seq,
    )
    with store.begin() as connection:
        stored = snapshots.add(connection, snapshot)
    return stored.model_copy(update={"feedback_seq": max(seq, stored.feedback_seq)})


def _read(store: Store, project: str) -> tuple[int, list[Feedback], dict[str, Generation]]:
    items: list[Feedback] = []
    seq = 0
    with store.read() as connection:
        while page := feedback.list_by(connection, project, after_seq=seq, limit=_PAGE):
            items += [item for _, item in page]
            seq = page[-1][0]
        ids = {id for item in items if (id := getattr(item, "generation", None))}
        made = generations.get_many(connection, sorted(ids))
    return seq, items, made


def _drafts(items: Sequence[Feedback], made: dict[str, Generation]) -> tuple[list[Draft], list[Dropped]]:
    """All drafts in the order in which their feedback arrived."""
    standing, dropped = newest(items)
    drafts: list[Draft] = []
    for item in standing:
        if isinstance(item, ImageRated):
            continue
        found, lost = picked_drafts(item, made) if isinstance(item, ImagePicked) else drafts_of(item, made)
        drafts += found
        dropped += [lost] if lost else []
    rated, lost_ratings = rated_drafts([item for item in standing if isinstance(item, ImageRated)], made)
    written = prompt_drafts([item for item in standing if isinstance(item, ImagePicked | ImageRated)], made)
    told = {id for draft in written for id in draft.sample.feedback}
    dropped += [lost for lost in lost_ratings if lost.feedback not in told]
    arrival = {item.id: place for place, item in enumerate(items)}
    drafts += [*rated, *written]
    return sorted(drafts, key=lambda draft: max(arrival[id] for id in draft.sample.feedback)), dropped


def _replayed(replay: Replay, samples: Sequence[Sample], wanted: int) -> tuple[Sample, ...]:
    if callable(replay):
        groups = {sample.group for sample in samples}
        taken = sum(group_of((Message.of("user", question),)) in groups for question in replays.questions())
        replay = replay(wanted + taken) if wanted else ()
    return replays.choose(replay, samples, wanted)


def _by_kind(samples: Sequence[Sample]) -> dict[str, int]:
    kinds = [sample.kind for sample in samples]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _why(kind: str, recipe: str, report: CurationReport) -> str:
    if not report.feedback:
        return f"The project {report.project} has no feedback yet."
    if others := {k: n for k, n in report.train.items() if k != kind}:
        there = ", ".join(f"{n} {k}" for k, n in others.items())
        return f"The recipe {recipe} needs {kind} samples; there are only others to train on ({there})."
    if report.holdout:
        return "What has come in so far is held out to judge with; more feedback is needed to train on."
    left_out = ", ".join(f"{n} {reason}" for reason, n in report.dropped.items())
    return f"None of the {report.feedback} pieces of feedback can be trained on ({left_out})."
