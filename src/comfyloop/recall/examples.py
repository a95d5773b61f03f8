"""Selects the past edits for the prompt of a question.

An edit is an example if its question is similar enough, the answering version has not learned it, and nobody has wanted
something else of such questions since (curate/changes.py). The identical question comes first, so that its edit applies
from the next time on; then the most similar ones. A question without similar edits gets no examples, and is answered as
if there were no edits.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from comfyloop.errors import NotFound
from comfyloop.recall.index import Edit, EditIndex, Near, RecallQuestion, size
from comfyloop.recall.learned import NOTHING, Learned, learned
from comfyloop.recall.words import NEWEST, EditPair, Written, written
from comfyloop.records import BASE, Message
from comfyloop.store import Store, flags

NEAR = 0.30
"""Least cosine of an example's question to the one that is asked; measured by bench/examples.py."""
MOST = 3
"""Examples of one question."""
EXAMPLES_BYTES = 3000
"""Of all examples together, in UTF-8: at most as many tokens."""
CONVERSATION_BYTES = 6000
"""A longer conversation gets no examples: it shows by itself what is wanted, and needs its room."""
LEAST = 2
"""Of examples that are not of the very same question. Small models pass over a single one, or take its picture or
its fact for that of the question."""
ASKED = 8
"""The nearest edits, which tell whether the model knows the answers to such questions."""
KNOWN = 1 / 3
"""It does when so many of them kept what the answer had said."""

_PROJECTS = 16
_VERSIONS = 4


class PromptExample(NamedTuple):
    """A question with the answer that a person wanted, and the id of that feedback."""

    feedback: str
    question: Message
    answer: Message


class Recall:
    """Examples for the questions of all projects. Thread-safe.

    Memory is bounded: the newest edits (index.MOST) of the 16 projects asked last.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._projects: OrderedDict[str, _Project] = OrderedDict()

    def examples(
        self,
        project: str,
        version: int,
        messages: Sequence[Message],
        most: int = MOST,
        *,
        careful: bool = True,
    ) -> list[PromptExample]:
        """At most `most` examples for the last question of a conversation, the best one last, next to the question.
        An identical question returns its edit `most` times.

        Args:
            careful: Put nothing before other questions than the very same that could make a small model forget
                what it knows: see `_knows`, LEAST, and no other pictures.

        Raises:
            StorageError: The database refuses.
        """
        question = RecallQuestion.of(messages)
        if most <= 0 or question is None:
            return []
        if sum(size(message.text, "") for message in messages) > CONVERSATION_BYTES:
            return []
        chosen = self._of(project).choose(version, question, most, careful)
        return [_example(near) for near in reversed(chosen)]

    def words(self, project: str) -> list[Written]:
        """The project's preferences in words. Raises StorageError."""
        return self._of(project).words()

    def _of(self, project: str) -> _Project:
        with self._lock:
            entry = self._projects.setdefault(project, _Project(self._store, project))
            self._projects.move_to_end(project)
            if len(self._projects) > _PROJECTS:
                self._projects.popitem(last=False)
            return entry


class _Project:
    def __init__(self, store: Store, project: str) -> None:
        self._store = store
        self._project = project
        self._lock = threading.Lock()
        self._index = EditIndex(project)
        self._learned: OrderedDict[int, Learned] = OrderedDict()
        self._words: list[Written] = []
        self._words_of: object = None  # the index's revision, and changes of mind, that they were read from
        self._outdated: frozenset[str] = frozenset()
        self._changes: object = ()  # that it was read from

    def choose(self, version: int, question: RecallQuestion, most: int, careful: bool) -> list[Near]:
        with self._lock:
            self._index.update(self._store)
            if not (near := self._near(question)):
                return []
            learned = self._learned_by(version)
            chosen = _chosen(near, learned, question, most, careful)
            if chosen and self._index.gone(self._store, [near.edit for near in chosen]):
                chosen = _chosen(self._near(question), learned, question, most, careful)
            return chosen

    def _near(self, question: RecallQuestion) -> list[Near]:
        near = self._index.nearest(question, NEAR)
        if near:
            self._note_changes()
        return [one for one in near if one.edit.feedback not in self._outdated]

    def _note_changes(self) -> None:
        """What is outdated; few people change their minds, so that only their changes are asked for each time."""
        with self._store.read() as conn:
            if (changes := flags.changes(conn, self._project)) != self._changes:
                self._outdated, self._changes = flags.outdated(conn, self._project), changes

    def words(self) -> list[Written]:
        with self._lock:
            self._index.update(self._store)
            self._note_changes()
            edits = self._newest()
            if edits and self._index.gone(self._store, edits):
                edits = self._newest()
            if self._words_of != (of := (self._index.revision, self._changes)):
                self._words = written([EditPair(edit.seen, edit.answer, edit.feedback) for edit in edits])
                self._words_of = of
            return self._words

    def _newest(self) -> list[Edit]:
        return [edit for edit in self._index.edits() if edit.feedback not in self._outdated][-NEWEST:]

    def _learned_by(self, version: int) -> Learned:
        """What a version has learned; read once, since versions are immutable."""
        if version == BASE:
            return NOTHING
        if version not in self._learned:
            try:
                self._learned[version] = learned(self._store, self._project, version)
            except NotFound:
                return NOTHING
            if len(self._learned) > _VERSIONS:
                self._learned.popitem(last=False)
        return self._learned[version]


def _chosen(
    candidates: Sequence[Near], learned: Learned, question: RecallQuestion, most: int, careful: bool
) -> list[Near]:
    """The best usable edits, one per question, as far as they fit; best first."""
    chosen: list[Near] = []
    room = EXAMPLES_BYTES
    for near in _usable(candidates, learned, question, careful):
        takes = size(near.edit.question.text, near.edit.answer)
        if near.same:
            # Small models pass over a single example, also where it is the very question that they are asked; but
            # not where it has a picture, and three of those are long.
            return [near] * (1 if question.images else max(1, min(most, room // takes)))
        repeated = any(near.edit.question.same(other.edit.question) for other in chosen)
        if takes <= room and not repeated:
            chosen.append(near)
            room -= takes
        if len(chosen) == most:
            break
    least = LEAST if careful or question.images else 1
    return chosen if len(chosen) >= least else []


def _usable(
    candidates: Sequence[Near], learned: Learned, question: RecallQuestion, careful: bool
) -> Iterator[Near]:
    """Edits that the version has not learned, best first. Edits about pictures are used only for questions about
    pictures."""
    others = not (careful and _knows(candidates))
    for near in candidates:
        images, id = near.edit.question.images, near.edit.feedback
        if near.same:
            fits = True
        elif careful:
            fits = others and images == question.images
        else:
            fits = len(images) == len(question.images)
        # What was held out, the gate has seen the version do without.
        if fits and id not in learned.trained and (near.same or id not in learned.held):
            yield near


def _knows(candidates: Sequence[Near]) -> bool:
    """Whether people kept the content of the model's answers to such questions and changed only the style, so that
    the model knew the answers. A small model forgets what it knew when examples show it a style."""
    nearest = [near.edit.kept for near in candidates if not near.same][:ASKED]
    return sum(nearest) >= KNOWN * max(1, len(nearest))


def _example(near: Near) -> PromptExample:
    edit = near.edit
    return PromptExample(
        edit.feedback,
        Message.of("user", edit.question.text, edit.question.images),
        Message.of("assistant", edit.answer),
    )
