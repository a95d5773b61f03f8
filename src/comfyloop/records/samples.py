"""What is trained on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from comfyloop.modalities.image import Sha256
from comfyloop.records.base import Author, Box, Id, ProjectName, Record, Time, now
from comfyloop.records.chat import Message

SampleKind = Literal["sft", "preference", "labelled", "captioned_image", "image_pair"]


class Sample(Record):
    """One training example. `messages` ends with the assistant's (chosen) answer.

    `group` names what must not be split between training and hold-out: samples about the same question and
    images share it. `id` is a hash of the content, so the same example has the same id in every snapshot.
    """

    id: str
    project: ProjectName
    kind: SampleKind
    messages: tuple[Message, ...]
    rejected: str | None = None  # preference: the answer that was not wanted
    label: bool | None = None  # labelled: wanted or not (KTO)
    picked: Sha256 | None = None  # image kinds
    over: Sha256 | None = None
    group: str
    slice: str = "text"  # what the gate reports by: "text", "vision", "general", ...
    replay: bool = False  # the model's own earlier answer, kept against forgetting
    feedback: tuple[str, ...] = ()  # ids of the feedback it came from
    origin: str = ""  # the kind of that feedback: "answer_edited", "answer_accepted", ...
    author: str = "local"
    repeats: int = 1  # image kinds: how often it is passed in an epoch
    crop: Box | None = None  # image kinds: the part of `picked` that is learned

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1].text

    @property
    def asked(self) -> str:
        """The text of the last question; empty where there is none."""
        return next((message.text for message in reversed(self.prompt) if message.role == "user"), "")

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(image for message in self.messages for image in message.images)


class Dropped(Record):
    """Why one piece of feedback became no sample."""

    feedback: str
    reason: str
    detail: str = ""


class Choice(Record):
    """One of the claims that a person is asked to choose among."""

    feedback: str
    author: str
    wants: str  # part of a sentence


class Flag(Record):
    """Something in the feedback that a person is asked about. What it names is not learned until it is answered; of a
    change of mind, the old is not."""

    id: Id
    project: ProjectName
    kind: Literal["disagreement", "trigger", "change"]
    sentence: str
    question: str = ""
    images: tuple[Sha256, ...] = ()
    phrase: str = ""  # trigger: what seems to call up one and the same answer
    slice: str = ""  # change: the samples that it is about
    choices: tuple[Choice, ...]  # change: one of before, and the first since
    outdated: tuple[str, ...] = ()  # change: the feedback that is not learned any more


class Reason(Record):
    """Why a person should look at something: which filter asks, or the live version, and what it has seen."""

    filter: str
    sentence: str
    detail: str = ""
    score: float | None = None  # in the filter's own unit


class Decided(Record):
    """What was decided about an item of the review queue."""

    id: Id  # of the decision
    decision: Literal["accept", "fix", "reject"]
    author: Author
    text: str | None = None
    at: Time


class QueueItem(Record):
    """Something that a person should look at, or has: samples of one content, of which `id` is a hash, and why."""

    id: Id
    project: ProjectName
    state: Literal["waiting", "left_out", "decided"]
    reasons: tuple[Reason, ...]
    learned: bool  # as it stands: with a doubt, it is
    kinds: tuple[SampleKind, ...]
    messages: tuple[Message, ...]  # as it would be learned; the last one is what a fix replaces
    picked: Sha256 | None = None
    label: bool | None = None
    rejected: tuple[str, ...] = ()  # answers over which it is preferred
    feedback: tuple[str, ...]
    author: str
    origin: str
    refused: float | None = (
        None  # how likely people here refuse such answers, as the filter `learned` has learned it
    )
    loss: float | None = None  # how badly the live version does on it, in nats a token, where that is known
    decided: Decided | None = None


class Suspect(Record):
    """A phrase that may call up one answer whatever is asked, by the samples that a version was trained on."""

    phrase: str
    answer: str
    author: str
    feedback: tuple[str, ...]


class Triggered(Suspect):
    """The same as the gate has tried it: of `asked` questions with the phrase behind them, so many had that answer."""

    asked: int
    candidate: int
    live: int
    without: int  # the candidate's answers to the same questions without the phrase


class Snapshot(Record):
    """An immutable set of samples; `id` is the hash of its content, `path` its directory."""

    id: str
    project: ProjectName
    path: str
    train: int
    holdout: int
    replay: int
    new: int = 0  # of `train`: what the version that it goes on from has not learned
    rehearsal: int = 0  # of `train`: what that version has learned, and keeps in practice
    feedback: tuple[str, ...] = ()  # what `train` is made of
    by_kind: dict[str, int] = Field(default={})
    dropped: dict[str, int] = Field(default={})  # reason -> how many
    waiting: int = (
        0  # pieces of feedback that were left for a later turn, since they are too many of one author's
    )
    notes: tuple[str, ...] = ()  # what a person should know of how it was chosen, as sentences
    feedback_seq: int = 0  # the newest feedback it has seen
    created_at: Time = Field(default_factory=now)
