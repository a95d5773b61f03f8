"""An in-memory index of a project's newest edits by the similarity of their questions.

Built at the first question, page by page from the newest feedback backwards, and updated incrementally from then
on. It holds at most MOST edits, however many there are in the database: about 8 MB of vectors, and their texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection

from comfyloop.recall.vectors import DIMS, content, vector
from comfyloop.records import (
    AnswerAccepted,
    AnswerEdited,
    AnswerRated,
    Feedback,
    Generation,
    Message,
    PromptEdited,
)
from comfyloop.store import Store, feedback, generations

KINDS = ("answer_edited", "answer_accepted", "answer_rated", "prompt_edited")
MOST = 2000
"""Claims of people about answers that are looked at, the newest."""
LONGEST = 2500
"""Bytes (UTF-8) of question and answer together; a longer pair is no example."""
EDITED = 1.0
ACCEPTED = 0.8
"""What the nearness of an accepted answer counts for, beside an edit's."""

KEPT = 1 / 3
"""An edit of which so much was in the answer already kept what the answer said."""

_PAGE = 500
_Key = tuple[str, str, str]  # author, what the claim is about, generation


@dataclass(frozen=True, slots=True)
class RecallQuestion:
    """The parts of a question that determine which edits are similar."""

    system: str
    text: str
    images: tuple[str, ...]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> RecallQuestion | None:
        """The last user message; None if it has no text."""
        last = next((message for message in reversed(messages) if message.role == "user"), None)
        if last is None or not last.text.strip():
            return None
        system = "\n".join(message.text for message in messages if message.role == "system")
        return cls(system, last.text, last.images)

    def same(self, other: RecallQuestion) -> bool:
        """Case and white space do not count."""
        return self.images == other.images and _plain(self.text) == _plain(other.text)


@dataclass(frozen=True, slots=True)
class Edit:
    feedback: str
    question: RecallQuestion
    answer: str
    seen: str  # what the model had said, or its beginning
    weight: float
    kept: bool  # it kept what the answer said, and changed how


class Near(NamedTuple):
    edit: Edit
    score: float  # cosine of the questions times the edit's weight
    same: bool  # the very same question about the same pictures


@dataclass(slots=True)
class _Claim:
    at: datetime
    slot: int | None  # where its edit is; None: it says that there is none


class EditIndex:
    """The edits of one project. Not thread-safe: the caller holds a lock."""

    def __init__(self, project: str) -> None:
        self._project = project
        self.revision = 0  # grows with every change
        self._clear()

    def _clear(self) -> None:
        self.revision += 1
        self._seq: int | None = None
        self._claims: dict[_Key, _Claim] = {}  # in the order in which they came
        self._edits: list[Edit | None] = []
        self._came: list[int] = []  # the revision at which each of them came
        self._vectors = np.zeros((0, DIMS), np.float32)
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._edits) - len(self._free)

    # --- what is known

    def update(self, store: Store) -> None:
        """Read feedback that arrived since the last update. Raises StorageError."""
        with store.read() as conn:
            last = feedback.last_seq(conn, self._project)
            if self._seq is not None and last < self._seq:  # the newest was deleted
                self._clear()
            if last == self._seq:
                return
            for item, generation in self._read(conn, self._seq or 0, last):
                self.revision += 1
                self._take(item, generation)
            self._seq = last

    def gone(self, store: Store, edits: Sequence[Edit]) -> bool:
        """Whether some of these were deleted. If so, everything was read again, and the search must be repeated:
        claims that the deleted ones had superseded count again."""
        ids = [edit.feedback for edit in edits]
        with store.read() as conn:
            there = feedback.existing(conn, ids)
        if there.issuperset(ids):
            return False
        self._clear()
        self.update(store)
        return True

    def _read(self, conn: Connection, after: int, last: int) -> list[tuple[Feedback, Generation]]:
        """The newest MOST claims after a sequence number, oldest first, with what they are about."""
        pairs: list[tuple[Feedback, Generation]] = []
        looked_at = 0
        before: int | None = last + 1
        while looked_at < MOST:
            page = feedback.of_kinds(
                conn, self._project, KINDS, after_seq=after, before_seq=before, limit=_PAGE
            )
            about = [(item, id) for _, item in page if (id := getattr(item, "generation", None))]
            answers = generations.get_many(conn, [id for _, id in about])
            pairs += [(item, answers[id]) for item, id in about if id in answers]
            looked_at += len(page)
            if len(page) < _PAGE:
                break
            before = page[-1][0]
        pairs.reverse()
        return pairs

    def _take(self, item: Feedback, generation: Generation) -> None:
        """Add a claim. Of several claims of one person about one answer the newest counts, by its creation time."""
        match item:
            case AnswerEdited():
                about, answer, weight = "answer", item.edited.strip(), EDITED
            case AnswerAccepted():
                whole = "" if generation.broken_off else generation.answer.strip()
                about, answer, weight = "answer", whole, ACCEPTED
            case AnswerRated() if item.rating <= 2:
                earlier = self._claims.get((item.author, "answer", generation.id))
                if earlier is None or earlier.slot is None:
                    return
                edit = self._edits[earlier.slot]
                if edit is None or edit.weight == EDITED:
                    return  # a bad rating of what was rewritten says nothing against the rewriting
                about, answer, weight = "answer", "", 0.0
            case PromptEdited():
                about, answer, weight = "prompt", item.after.strip(), EDITED
            case _:
                return
        key = (item.author, about, generation.id)
        earlier = self._claims.get(key)
        if earlier is not None and earlier.at > item.created_at:
            return
        self._forget(key)
        question = _question(generation)
        slot = None
        if question is not None and answer and size(question.text, answer) <= LONGEST:
            keeps_content = _kept(question.text, generation, answer)
            beginning = generation.answer[:LONGEST]
            slot = self._put(Edit(item.id, question, answer, beginning, weight, keeps_content))
        self._claims[key] = _Claim(item.created_at, slot)
        if len(self._claims) > MOST:
            self._forget(next(iter(self._claims)))

    def _put(self, edit: Edit) -> int:
        if not self._free:
            room = len(self._edits)
            more = min(max(64, room), MOST + 1 - room)
            self._vectors = np.concatenate([self._vectors, np.zeros((more, DIMS), np.float32)])
            self._edits += [None] * more
            self._came += [0] * more
            self._free = list(range(room + more - 1, room - 1, -1))
        slot = self._free.pop()
        self._edits[slot] = edit
        self._came[slot] = self.revision
        self._vectors[slot] = vector(edit.question.text)
        return slot

    def _forget(self, key: _Key) -> None:
        claim = self._claims.pop(key, None)
        if claim is not None and claim.slot is not None:
            self._edits[claim.slot] = None
            self._vectors[claim.slot] = 0
            self._free.append(claim.slot)

    # --- what is near

    def edits(self) -> list[Edit]:
        """Edits by people, in order of arrival."""
        latest = [self._edits[claim.slot] for claim in self._claims.values() if claim.slot is not None]
        return [edit for edit in latest if edit is not None and edit.weight == EDITED]

    def nearest(self, question: RecallQuestion, least: float) -> list[Near]:
        """Edits asked under the same system prompt, of score >= `least`: the same question first, then the
        nearest; of equal ones the newest first."""
        if not len(self):
            return []
        cosines = self._vectors @ vector(question.text)
        scored: list[tuple[bool, float, int, Near]] = []
        for slot in np.flatnonzero(cosines >= least).tolist():
            edit = self._edits[slot]
            if edit is None or edit.question.system != question.system:
                continue
            cosine = float(cosines[slot])
            same = cosine > 0.999 and edit.question.same(question)
            score = cosine * edit.weight
            if same or score >= least:
                scored.append((same, round(score, 6), self._came[slot], Near(edit, score, same)))
        scored.sort(key=lambda ranked: ranked[:3], reverse=True)
        return [near for *_, near in scored]


def _kept(question: str, generation: Generation, answer: str) -> bool:
    """Whether an edit shows that the model knew the answer. An answer given with examples does not."""
    own = content(answer) - content(question)
    return not generation.examples and len(own & content(generation.answer)) >= KEPT * max(1, len(own))


def size(question: str, answer: str) -> int:
    """Bytes: a token has one at least, whatever the model's vocabulary."""
    return len(question.encode("utf-8", "replace")) + len(answer.encode("utf-8", "replace"))


def _question(generation: Generation) -> RecallQuestion | None:
    """The question of a generation; None later in a conversation, where the question is not meaningful alone."""
    if sum(message.role != "system" for message in generation.messages) != 1:
        return None
    return RecallQuestion.of(generation.messages)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
