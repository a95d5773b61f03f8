"""What the last curation has made of a project's feedback, kept for the next one: what is unchanged is not read again.

Feedback says something about other feedback only where both are about the same thing: an answer, a picture, a brief, a
text that was changed and changed back. What is so connected is a thread. New feedback makes its own threads anew, a
decision of the review queue those that it is about, and the filters that look at each draft alone look at new drafts.
Where feedback was deleted, a setting or a picture's file has changed, or something was installed, all begins anew: the
result never depends on what was known before.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

from comfyloop import sight
from comfyloop.curate import corrections, filters, reviews, samples
from comfyloop.curate.filters import Passed
from comfyloop.curate.groups import PictureGroups
from comfyloop.curate.measurements import Measurements
from comfyloop.curate.pictures import picked_drafts, prompt_of, rated_drafts
from comfyloop.curate.prompts import prompt_drafts
from comfyloop.curate.reviews import Reviewed, ReviewVerdict
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft, drafts_of, newest
from comfyloop.curate.seen import SeenPictures
from comfyloop.records import (
    Dropped,
    Feedback,
    Generation,
    GraphEdited,
    ImagePicked,
    ImageRated,
    PromptEdited,
    SampleReviewed,
    SampleUploaded,
)
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, generations, projects

_PAGE = 1000

_Order = tuple[int, ...]


class Looked(NamedTuple):
    """What a project's feedback comes to, before anything is compared with anything.

    Attributes:
        seq: The newest feedback that was looked at.
        total: Pieces of feedback.
        when: Of each piece, when it was made and its place in the order of arrival.
        dropped: Feedback of which no draft is made, in that order.
        passed: The drafts in the order of arrival, as the filters that look at each alone let them pass.
    """

    seq: int
    total: int
    when: Mapping[str, tuple[datetime, int]]
    dropped: list[Dropped]
    reviewed: Reviewed
    passed: list[Passed]
    ground: Ground
    seen: SeenPictures
    pictures: PictureGroups


@dataclass(eq=False, slots=True)
class _Made:
    """A draft as its feedback has it, and what became of it."""

    draft: Draft
    order: _Order
    reviewed: Reviewed | None = None  # None: no decision is about it


@dataclass
class _State:
    stamp: Any
    seen: SeenPictures
    pictures: PictureGroups
    seq: int = 0
    when: dict[str, tuple[datetime, int]] = field(default_factory=dict)
    decisions: list[SampleReviewed] = field(default_factory=list)
    verdicts: dict[str, ReviewVerdict] = field(default_factory=dict)
    thread: dict[bytes, str] = field(default_factory=dict)  # what it is about -> a piece of feedback about it
    joined: dict[str, str] = field(
        default_factory=dict
    )  # a piece -> another one of its thread, up to the first
    members: dict[str, list[str]] = field(
        default_factory=dict
    )  # the first -> all pieces, in order of arrival
    dropped: dict[str, list[Dropped]] = field(default_factory=dict)  # the first -> what its thread leaves out
    made: dict[str, list[_Made]] = field(default_factory=dict)  # the first -> its drafts
    line: list[tuple[_Order, _Made, Passed]] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)  # by filters that compare


class Known:
    """Of one project. Who looks holds `lock` as long as he uses what he got."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._state: _State | None = None

    def forget(self) -> None:
        with self.lock:
            self._state = None

    def look(self, store: Store, project: str, settings: Settings) -> Looked:
        """Raises NotFound, StorageError."""
        try:
            return self._look(store, project, settings)
        except BaseException:
            self._state = None  # it may be half made
            raise

    def _look(self, store: Store, project: str, settings: Settings) -> Looked:
        with store.read() as conn:
            made_at = projects.get(conn, project).created_at
            stamp = (made_at, settings, tuple(sight.missing(program) for program in sight.NEEDS))
            state = self._state
            if (
                state is None
                or state.stamp != stamp
                or feedback.count_upto(conn, project, state.seq) != len(state.when)
                or not state.seen.renew()
            ):
                seen = SeenPictures(store.blobs, settings.cache_dir)
                state = self._state = _State(stamp, seen, PictureGroups(seen.look))
            new: list[Feedback] = []
            while page := feedback.list_by(conn, project, after_seq=state.seq, limit=_PAGE):
                new += [item for _, item in page]
                state.seq = page[-1][0]
            made = generations.get_many(conn, sorted({id for item in new if (id := _generation(item))}))
            first = len(state.when)
            state.when |= {item.id: (item.created_at, first + n) for n, item in enumerate(new)}
            touched = _thread(state, new, made)
            at_hand = {item.id: item for item in new}
            others = [id for head in touched for id in state.members[head] if id not in at_hand]
            at_hand |= feedback.find_many(conn, others)
            missing = {id for other in others if (id := _generation(at_hand[other]))} - made.keys()
            made |= generations.get_many(conn, sorted(missing))
        for item in new:
            for sha in _shown(item, made):
                state.pictures.same(sha)
        gone = {one for head in touched for one in state.made.get(head, ())}
        fresh: list[_Made] = []
        for head in touched:
            drafts, state.dropped[head] = thread_drafts(
                [at_hand[id] for id in state.members[head]], made, settings
            )
            places = [_arrived(state, draft) for draft in drafts]
            state.made[head] = [
                _Made(draft, (place, number))
                for number, (draft, place) in enumerate(zip(drafts, places, strict=True))
            ]
            fresh += state.made[head]
        fresh += _review(state, [item for item in new if isinstance(item, SampleReviewed)], fresh, gone)
        ground = Ground(
            settings,
            state.seen,
            Measurements(settings.cache_dir),
            (),
            same=state.pictures.same,
            left=state.left,
        )
        _pass(state, fresh, gone, ground)
        reviewed = _reviewed(state)
        dropped = [lost for lost_ones in state.dropped.values() for lost in lost_ones]
        dropped.sort(key=lambda lost: state.when[lost.feedback][1])
        return Looked(
            state.seq,
            len(state.when),
            state.when,
            [*dropped, *reviewed.dropped],
            reviewed,
            [passed for _, _, passed in state.line],
            replace(ground, taught=reviewed.taught),
            state.seen,
            state.pictures,
        )


# --- threads ------------------------------------------------------------------------------------------------


def _thread(state: _State, new: Sequence[Feedback], made: Mapping[str, Generation]) -> list[str]:
    """Put new feedback into threads; the first pieces of those that are to be made anew."""
    heads: dict[str, None] = {}
    for item in new:
        if isinstance(item, SampleReviewed):
            continue
        found = [_head(state, state.thread.setdefault(key, item.id)) for key in map(_key, _about(item, made))]
        all_heads = sorted({*found, item.id}, key=lambda id: state.when[id][1])
        head = all_heads[0]
        pieces = [id for one in all_heads for id in state.members.pop(one, [one])]
        for one in all_heads[1:]:
            state.joined[one] = head
            state.dropped.pop(one, None)
            if one in state.made:  # two threads are one now
                state.made.setdefault(head, []).extend(state.made.pop(one))
            heads.pop(one, None)
        state.members[head] = sorted(pieces, key=lambda id: state.when[id][1])
        heads[head] = None
    return sorted(heads, key=lambda id: state.when[id][1])


def _head(state: _State, id: str) -> str:
    while id in state.joined:
        id = state.joined[id]
    return id


def _key(about: Hashable) -> bytes:
    return hashlib.blake2b(repr(about).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _about(item: Feedback, made: Mapping[str, Generation]) -> Iterator[Hashable]:
    """All things by which what else is said may change what becomes of it."""
    if generation := _generation(item):
        yield "generation", generation
    if (target := samples.target(item)) is not None:
        yield item.author, *target
    if isinstance(item, PromptEdited | GraphEdited) and corrections.is_captured(item):
        yield item.author, item.kind, *sorted((repr(item.before), repr(item.after)))
    if isinstance(item, ImagePicked | ImageRated):
        if isinstance(item, ImageRated):
            yield item.author, "prompt", prompt_of(item, made)
        if (written := made.get(item.generation or "")) is not None:
            yield item.author, "brief", written.messages


def _generation(item: Feedback) -> str | None:
    found: str | None = getattr(item, "generation", None)
    return found


def _shown(item: Feedback, made: Mapping[str, Generation]) -> Iterator[str]:
    """Pictures that are asked about, and such as were drawn."""
    if isinstance(item, ImagePicked):
        yield from (*item.picked, *item.over)
    if isinstance(item, ImageRated):
        yield item.image
    generation = made.get(_generation(item) or "")
    messages = (
        item.messages if isinstance(item, SampleUploaded) else generation.messages if generation else ()
    )
    for message in messages:
        yield from message.images


def thread_drafts(
    items: Sequence[Feedback], made: Mapping[str, Generation], settings: Settings
) -> tuple[list[Draft], list[Dropped]]:
    """All drafts of a thread, in the order in which their feedback arrived."""
    standing, dropped = newest(items)
    lost_edits = corrections.unsure(standing)
    if not settings.learn_graph_edits:
        graphs = {item.id for item in standing if isinstance(item, GraphEdited)}
        lost_edits = [lost for lost in lost_edits if lost.feedback not in graphs]
        lost_edits += [Dropped(feedback=id, reason="graph_edits_off") for id in sorted(graphs)]
    left_out = {lost.feedback for lost in lost_edits}
    standing, dropped = [item for item in standing if item.id not in left_out], [*dropped, *lost_edits]
    drafts: list[Draft] = []
    for item in standing:
        if isinstance(item, ImageRated):
            continue
        found, lost = picked_drafts(item, made) if isinstance(item, ImagePicked) else drafts_of(item, made)
        drafts += found
        dropped += [lost] if lost else []
    about_images = [item for item in standing if isinstance(item, ImagePicked | ImageRated)]
    if about_images:
        rated, lost_ratings = rated_drafts(
            [item for item in about_images if isinstance(item, ImageRated)], made
        )
        written = prompt_drafts(about_images, made)
        told = {id for draft in written for id in draft.sample.feedback}
        dropped += [lost for lost in lost_ratings if lost.feedback not in told]
        drafts += [*rated, *written]
    arrival = {item.id: place for place, item in enumerate(items)}
    drafts.sort(key=lambda draft: max(arrival[id] for id in draft.sample.feedback))
    return drafts, dropped


# --- decisions ----------------------------------------------------------------------------------------------


def _review(
    state: _State, new: Sequence[SampleReviewed], fresh: Collection[_Made], gone: set[_Made]
) -> list[_Made]:
    """Apply what people decided to new drafts, and to those that a new decision is about, which are returned."""
    changed: frozenset[str] | set[str] = frozenset()
    if new:
        before = state.verdicts
        state.decisions += new
        state.verdicts = reviews.verdicts_of(state.decisions)
        changed = {
            id for id in before.keys() | state.verdicts.keys() if before.get(id) != state.verdicts.get(id)
        }
    again: list[_Made] = []
    if changed:
        known = set(fresh)
        again = [
            one
            for every in state.made.values()
            for one in every
            if one not in known
            and not changed.isdisjoint(one.reviewed.looked_up if one.reviewed else (one.draft.item,))
        ]
        gone.update(again)
    for one in [*fresh, *again]:
        done = reviews.of_one(one.draft, state.verdicts)
        one.reviewed = done if done.decided else None
    return again


def _reviewed(state: _State) -> Reviewed:
    if not state.verdicts:
        return Reviewed()
    decided = [one for every in state.made.values() for one in every if one.reviewed]
    decided.sort(key=lambda one: one.order)
    done = reviews.together([one.reviewed for one in decided if one.reviewed])
    if done.rejected:
        used = {
            id
            for every in state.made.values()
            for one in every
            for draft in _as_reviewed(one)
            for id in draft.sample.feedback
        }
        done.dropped = reviews.dropped(done.rejected, used)
    return done


def _as_reviewed(one: _Made) -> Sequence[Draft]:
    return one.reviewed.drafts if one.reviewed else (one.draft,)


# --- filters ------------------------------------------------------------------------------------------------


def _pass(state: _State, fresh: Sequence[_Made], gone: Collection[_Made], ground: Ground) -> None:
    """Have new drafts filtered, and put them in their places among the others."""
    there = [(one, number, draft) for one in fresh for number, draft in enumerate(_as_reviewed(one))]
    # what was fixed came with its fix
    orders = [(_arrived(state, draft), *one.order, number) for one, number, draft in there]
    sorted_too = sorted(range(len(there)), key=orders.__getitem__)
    passed = filters.each([there[place][2] for place in sorted_too], ground)
    if gone:
        state.line = [entry for entry in state.line if entry[1] not in gone]
    state.line += [
        (orders[place], there[place][0], one) for place, one in zip(sorted_too, passed, strict=True)
    ]
    state.line.sort(key=itemgetter(0))


def _arrived(state: _State, draft: Draft) -> int:
    return max(state.when[id][1] for id in draft.sample.feedback)


__all__ = ["Known", "Looked", "thread_drafts"]
