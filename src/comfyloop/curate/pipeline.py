"""From all feedback of a project to a snapshot."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from comfyloop.curate import changes, disagreements, filters, review_queue, triggers
from comfyloop.curate import replay as replays
from comfyloop.curate.coverage import coverage
from comfyloop.curate.filters import untrainable
from comfyloop.curate.groups import group_of
from comfyloop.curate.known import Known, Looked
from comfyloop.curate.lesson import Lesson, choose, epochs_of
from comfyloop.curate.report import CurationReport, report_of
from comfyloop.curate.samples import Draft
from comfyloop.curate.snapshot import write
from comfyloop.curate.split import ACCEPTED, Split, split, stratum_of
from comfyloop.errors import ComfyLoopError, DataError, InvalidInput
from comfyloop.recipes import RECIPES, of_side
from comfyloop.records import (
    Dropped,
    Flag,
    Message,
    QueueItem,
    Sample,
    Snapshot,
)
from comfyloop.settings import Settings
from comfyloop.store import Store, projects, snapshots, versions
from comfyloop.store import flags as stored_flags

NOTHING_NEW = (
    "What has come in since the live version changes no training sample: there is nothing new to learn."
)

MOST_PICTURES = 24
"""General questions about pictures that a turn replays: each is asked of the base model once, which takes a while."""

PICTURE_SHARE = 0.25
"""Of what is replayed, so much is about pictures at least, where the model sees: text alone costs it its eyes, too."""

PictureReplay = Callable[[Sequence[str], int], Sequence[Sample]]
"""Makes so many general questions about pictures of these hashes and others; none where the model cannot see."""

Replay = Sequence[Sample] | Callable[[int], Sequence[Sample]]
"""Replay samples, or a function that makes as many as it is asked for."""


@dataclass(frozen=True)
class SnapshotRequest:
    """What a turn of the loop asks of its snapshot.

    Attributes:
        learned: Ids of the feedback that the live version carries.
        afresh: It starts from the base models and learns everything, not on from the live version.
        losses: How badly that version still does on samples, by their ids, as far as known; nats a token.
    """

    learned: frozenset[str]
    afresh: bool = False
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NothingToTrain:
    """There is nothing for a turn to do; `reason` says so to a person, `outcome` to a program."""

    reason: str
    report: CurationReport
    outcome: Literal["nothing_to_train", "nothing_new", "not_enough_feedback"] = "nothing_to_train"


def build(
    store: Store,
    project: str,
    settings: Settings,
    *,
    replay: Replay = (),
    picture_replay: PictureReplay | None = None,
    images: bool = False,
    turn: SnapshotRequest | None = None,
    known: Known | None = None,
) -> Snapshot | NothingToTrain:
    """Curates all feedback of a project and stores the snapshot.

    The same feedback gives the same snapshot: its id is then one that exists already, and `feedback_seq` is
    the newest feedback that was looked at now.

    Args:
        replay: General questions with the base model's answers. A function is called once, with the number
            needed, outside any transaction; it may take as long as it likes.
        picture_replay: Makes general questions about pictures, likewise; None: there are none.
        images: Pictures for the image model are something to train on, too.
        turn: Choose what a turn learns (lesson.py), and only where its candidate could be promoted; None:
            everything that there is.
        known: What the last curation of this project has left; None: nothing is kept for the next.

    Raises:
        NotFound: The project does not exist.
        StorageError: The disk or the database refuses.
    """
    if settings.recipe not in of_side("text"):
        there = ", ".join(of_side("text"))
        raise DataError(f"{settings.recipe!r} is no recipe.", f"Set `recipe` to one of {there}.")
    known = known or Known()
    with known.lock:
        sound = sound_of(store, project, settings, known)
        if turn is not None and settings.look_for_changes and _noted(store, project, sound):
            sound = sound_of(store, project, settings, known)
        looked = sound.looked
        everything = looked.pictures.regroup([draft.sample for draft in (*sound.kept, *sound.outdated)])
        samples, outdated = everything[: len(sound.kept)], everything[len(sound.kept) :]
        sides = split(store, project, samples, settings, _judged(store, project), outdated)
        train, holdout, refused = looked.pictures.apart(sides.train, sides.holdout, samples)
        covered = coverage(sound.kept, looked.ground)
        looked.seen.keep()
    dropped, sides = sound.dropped, Split(train, holdout)
    recipe = RECIPES[settings.recipe]
    kind: str = recipe.kind
    image_kind: str = RECIPES[settings.image_recipe].kind if images else ""
    lesson = _lesson(sides, (kind, image_kind), turn, settings)
    rows = sum(sample.kind == kind for sample in lesson.new)
    pictures = sum(sample.kind == image_kind for sample in lesson.new)
    enough = sum(s.kind == image_kind for s in lesson.train) >= settings.image_min_samples

    def report_with(chosen: Sequence[Sample], wanted: int) -> CurationReport:
        left_out = (*dropped, *refused)
        return report_of(
            project,
            looked.total,
            sides,
            lesson,
            chosen,
            left_out,
            settings,
            wanted,
            flags=sound.flags,
            unsure=sound.filtered.unsure,
            unmeasured=sound.filtered.unmeasured,
            coverage=covered,
        )

    # The base model is asked for its answers only where there will be a run.
    if not rows and not (pictures and enough):
        report = report_with((), 0)
        if turn is not None and any(sample.kind in (kind, image_kind) for sample in sides.train):
            return NothingToTrain(NOTHING_NEW, report, "nothing_new")
        return NothingToTrain(_why(kind, settings.recipe, report), report)
    if turn is not None and (missing := _missing(sides, kind, image_kind, bool(rows), settings)):
        return NothingToTrain(missing, report_with((), 0), "not_enough_feedback")
    passed = rows if turn is None else _passed(lesson, kind, settings)
    wanted = replays.needed(passed, settings.replay_share) if recipe.replays else 0
    seen = sum(sample.kind == kind and bool(sample.images) for sample in lesson.new)
    about: tuple[Sample, ...] = ()
    if rows and wanted and picture_replay is not None:
        share = max(seen / rows / 2, PICTURE_SHARE)
        own = list(dict.fromkeys(sha for sample in lesson.new for sha in sample.images))
        most = min(math.ceil(wanted * share), MOST_PICTURES)
        about = replays.choose(picture_replay(own, most), samples, most)
    chosen = _replayed(replay, samples, wanted - len(about)) if rows else ()
    if about:  # mixed, since an epoch takes a piece of the whole
        chosen = tuple(sorted((*chosen, *about), key=lambda sample: sample.id))
    # a model may answer with anything, also what no row can hold
    chosen = tuple(sample for sample in chosen if not untrainable.why(sample))
    report = report_with(chosen, min(wanted, replays.most()))
    try:
        id, path = write(
            settings.home, project, lesson, sides.holdout, chosen, report, store.blobs, looked.seen.form
        )
    except ComfyLoopError:
        known.forget()  # a picture may be gone from where nobody tells
        raise
    snapshot = Snapshot(
        id=id,
        project=project,
        path=str(path),
        train=len(lesson.train),
        holdout=len(sides.holdout),
        replay=len(chosen),
        new=len(lesson.new),
        rehearsal=len(lesson.rehearsal),
        feedback=tuple(sorted({id for sample in lesson.train for id in sample.feedback})),
        by_kind=_by_kind(samples),
        dropped=report.dropped,
        waiting=sum(report.waiting.values()),
        notes=report.notes,
        feedback_seq=looked.seq,
    )
    with store.begin() as connection:
        stored = snapshots.add(connection, snapshot)
    now = {"feedback_seq": max(looked.seq, stored.feedback_seq), "waiting": snapshot.waiting}
    return stored.model_copy(update={**now, "notes": snapshot.notes})


def flags(store: Store, project: str, settings: Settings, known: Known | None = None) -> list[Flag]:
    """What people are asked about the feedback of a project, and have not answered yet.

    Raises:
        NotFound: The project does not exist.
        StorageError: The disk or the database refuses.
    """
    known = known or Known()
    with known.lock:
        sound = sound_of(store, project, settings, known)
        sound.looked.seen.keep()
        return sound.flags


def queue(
    store: Store,
    project: str,
    settings: Settings,
    losses: Mapping[str, float] | None = None,
    known: Known | None = None,
) -> list[QueueItem]:
    """What a person should look at, first what is most in doubt; then what filters left out, then what was decided.

    Args:
        losses: How badly the live version still does on samples, by their ids, as far as known; nats a token.

    Raises:
        NotFound: The project does not exist.
        StorageError: The disk or the database refuses.
    """
    known = known or Known()
    with known.lock:
        sound = sound_of(store, project, settings, known)
        looked = sound.looked
        looked.seen.keep()
        return review_queue.of(
            looked.reviewed, sound.filtered.doubts, sound.kept, losses or {}, looked.ground
        )


def answer_flag(store: Store, flag: Flag, keep: str) -> None:
    """Write down what a person answered: the next turn goes by it.

    Args:
        keep: The id of the feedback whose claim holds, "all" or "none". Of people who disagree "none" leaves the
            claims that there are out for good; of samples that seem planted only "all" and "none" mean something; of
            a change of mind "all", and the newer claim.

    Raises:
        InvalidInput: There is no such choice.
        StorageError: The database refuses.
    """
    ids = [choice.feedback for choice in flag.choices]
    there = {"disagreement": [*ids, ALL, NONE], "trigger": [ALL, NONE], "change": [*ids[-1:], ALL]}[flag.kind]
    if keep not in there:
        raise InvalidInput(f"{keep!r} is no answer to {flag.id}.", f"Choose one of {', '.join(there)}.")
    if flag.kind == "trigger":
        given = {flag.id: triggers.KEEP if keep == ALL else triggers.LEAVE}
    elif flag.kind == "change":
        given = {flag.id: stored_flags.BOTH if keep == ALL else changes.NEWER}
    else:
        said = {ALL: disagreements.BOTH, NONE: disagreements.NEITHER}.get(keep, keep)
        given = {
            disagreements.key_of(one, other): said
            for one, other in itertools.combinations(ids, 2)
            if said != keep or keep in (one, other)
        }
    with store.begin() as conn:
        stored_flags.put_answers(conn, flag.project, given)


ALL, NONE = "all", "none"
"""What may be kept in answer to a flag, beside one of its choices."""


@dataclass(frozen=True)
class Sound:
    """What is left of the feedback when everything that may not be learned is out."""

    kept: list[Draft]
    dropped: list[Dropped]
    flags: list[Flag]
    filtered: filters.Filtered
    looked: Looked
    changes: Sequence[Flag] = ()
    """Of people's minds, that were noted before."""
    outdated: Sequence[Draft] = ()
    """What was wanted before those."""


def sound_of(store: Store, project: str, settings: Settings, known: Known) -> Sound:
    looked = known.look(store, project, settings)
    with store.read() as conn:
        answers, found = stored_flags.answers(conn, project), stored_flags.found(conn, project)
    changed, planted_before = ([f for f in found if (f.kind == "change") is kind] for kind in (True, False))
    filtered = filters.compare(looked.passed, looked.ground)
    settled = disagreements.settle(filtered.kept, looked.when, answers, looked.pictures.same)
    kept, asked = settled.kept, settled.flags
    dropped = [*looked.dropped, *filtered.dropped, *settled.dropped]
    if settings.look_for_triggers:
        kept, planted, flagged = triggers.find(kept, answers, planted_before)
        dropped, asked = [*dropped, *planted], [*asked, *flagged]
    past: list[Draft] = []
    if changed and settings.look_for_changes:
        before = kept
        kept, outdated, flagged = changes.apply(kept, answers, changed)
        dropped, asked = [*dropped, *outdated], [*asked, *flagged]
        still = set(map(id, kept))
        past = [draft for draft in before if id(draft) not in still]
    return Sound(kept, dropped, asked, filtered, looked, changed, past)


def _noted(store: Store, project: str, sound: Sound) -> bool:
    """Whether somebody has changed his mind since the last turn, which is kept then: it must not depend on what comes
    later."""
    found = changes.find(sound.kept, sound.looked.when, sound.changes)
    if found:
        with store.begin() as conn:
            stored_flags.add(conn, project, found)
    return bool(found)


def _lesson(sides: Split, kinds: tuple[str, str], turn: SnapshotRequest | None, settings: Settings) -> Lesson:
    if turn is None:
        return Lesson(new=sides.train)
    parts = [
        choose(
            [sample for sample in sides.train if sample.kind == kind],
            turn.learned,
            rehearsal=settings.rehearsal_samples,
            afresh=turn.afresh,
            most=settings.consolidation_samples,
            share=settings.author_share,
            losses=turn.losses,
        )
        for kind in kinds
        if kind
    ]
    return Lesson(
        new=tuple(sample for part in parts for sample in part.new),
        rehearsal=tuple(sample for part in parts for sample in part.rehearsal),
        dev=tuple(sample for part in parts for sample in part.dev),
        waiting=tuple(sample for part in parts for sample in part.waiting),
    )


def _passed(lesson: Lesson, kind: str, settings: Settings) -> int:
    """How many samples of that kind a run passes in all: what is new in every epoch, the rest once."""
    new = sum(sample.kind == kind for sample in lesson.new)
    return round(new * epochs_of(new, settings)) + sum(sample.kind == kind for sample in lesson.rehearsal)


def _missing(sides: Split, kind: str, image_kind: str, text: bool, settings: Settings) -> str:
    """Why no candidate could be promoted yet, whatever it learned; "" where one could."""
    most = settings.gate_min_items
    pictures = len({s.group for s in sides.holdout if s.kind == image_kind}) if image_kind else 0
    judged = len({s.group for s in sides.holdout if s.kind in (kind, "sft") and stratum_of(s) != ACCEPTED})
    if pictures >= most or (text and judged >= most):
        return ""
    wanted = most - judged
    each = 2 if judged < settings.holdout_first else settings.holdout_every
    return (
        f"{wanted * each} more corrections are needed before anything can be judged: of those so far {judged} are "
        f"held out to compare versions by, and {most} are needed."
    )


def _judged(store: Store, project: str) -> frozenset[str]:
    """Ids of the samples by which the live version was judged."""
    with store.read() as connection:
        live = versions.find(connection, project, projects.get(connection, project).live)
    return frozenset(item.sample for item in live.gate.items) if live and live.gate else frozenset()


def _replayed(replay: Replay, samples: Sequence[Sample], wanted: int) -> tuple[Sample, ...]:
    wanted = min(wanted, replays.most())
    if callable(replay):
        groups = {sample.group for sample in samples}
        taken = sum(
            group_of((Message.of("user", question),)) in groups for question in replays.every_question()
        )
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
