"""The nouns of ComfyLoop: frozen, validated, without I/O.

A record is what travels between stages, over HTTP and into files. Times are UTC, sizes are bytes, images are
named by the SHA-256 of their bytes (a blob), versions by their number within a project (0 is the base model).
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    model_validator,
)

from comfyloop.modalities import MODALITIES
from comfyloop.modalities import ImagePart as ImagePart
from comfyloop.modalities import Part as Part
from comfyloop.modalities import TextPart as TextPart
from comfyloop.modalities.image import Sha256 as Sha256

BASE = 0
"""The version number of the untrained base model."""

MOST_REVIEWED = 5000
"""Items that one decision may be about."""

ProjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
_OF_WINDOWS = re.compile(r"con|prn|aux|nul|com\d|lpt\d")
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")]
Rating = Annotated[int, Field(ge=1, le=5)]
Author = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


def now() -> datetime:
    return datetime.now(UTC)


def _in_utc(at: datetime) -> datetime:
    """A time without a zone is taken for UTC: times are compared, and those of both kinds cannot be."""
    if at.tzinfo is None:
        return at.replace(tzinfo=UTC)
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("this time is beyond the years that can be counted") from None


Time = Annotated[datetime, AfterValidator(_in_utc)]


def new_id(prefix: str) -> str:
    """An id that sorts by the time of its making: ``gen_019a…`` (48 bits of milliseconds, 64 of chance)."""
    return f"{prefix}_{int(time.time() * 1000):012x}{secrets.token_hex(8)}"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# --- what a model reads and writes --------------------------------------------------------------------------


if not TYPE_CHECKING:  # one of those that modalities declare
    _ANY = Union[tuple(modality.part for modality in MODALITIES.values())]  # noqa: UP007
    Part = Annotated[_ANY, Field(discriminator="type")]


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: tuple[Part, ...]

    @classmethod
    def of(
        cls, role: Literal["system", "user", "assistant"], text: str, images: Iterable[str] = ()
    ) -> Message:
        """A message of images (by hash) followed by text."""
        return cls(role=role, content=(*(ImagePart(sha256=i) for i in images), TextPart(text=text)))

    @property
    def text(self) -> str:
        """What a model reads of it."""
        if len(self.content) == 1 and isinstance(part := self.content[0], TextPart):  # as nearly all
            return part.text
        return "".join(part.model_input or "" for part in self.content)

    @property
    def preview(self) -> str:
        """What a person is shown of it, in a line."""
        return " ".join(filter(None, (part.preview for part in self.content)))

    @property
    def images(self) -> tuple[str, ...]:
        if len(self.content) == 1 and isinstance(self.content[0], TextPart):
            return ()
        return tuple(part.sha256 for part in self.content if isinstance(part, ImagePart))


class Sampling(Record):
    """How an answer was drawn; the names are OpenAI's."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1, le=32768)
    stop: tuple[str, ...] = ()
    seed: int | None = None


BROKEN_OFF = frozenset({"repetition", "error", "cancelled"})
"""Finish reasons of an answer that ended neither by itself nor at the limit that was asked for."""


class Generation(Record):
    """One model call. `version` is the one that answered, whatever alias was asked for."""

    id: Id
    project: ProjectName
    version: int
    model: str  # as the client asked for it: "acme", "acme@17", "acme@base"
    messages: tuple[Message, ...]
    answer: str
    sampling: Sampling = Sampling()
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    answer_tokens: int = 0
    examples: tuple[str, ...] = ()  # feedback that was put into the prompt; `messages` are as they were sent
    created_at: Time = Field(default_factory=now)

    @property
    def broken_off(self) -> bool:
        """As it stands it is no answer to learn: it would teach where a guard or a fault ended it."""
        return self.finish_reason in BROKEN_OFF


# --- what a person did --------------------------------------------------------------------------------------


class _Feedback(Record):
    id: Id = Field(
        default_factory=lambda: new_id("fb"),
        description="Made by the client: sending it twice stores it once.",
    )
    project: ProjectName
    author: Author = "local"
    created_at: Time = Field(
        default_factory=now,
        description="When the person did it; without a zone it is UTC. What is still to come is stored as now.",
    )
    comment: str = Field(default="", max_length=4000)


ToReview = Field(
    default=False,
    description="A model wrote it: it is learned only once a person has accepted or fixed it in the review queue.",
)


class AnswerEdited(_Feedback):
    """The person rewrote an answer: `edited` is what it should have been."""

    kind: Literal["answer_edited"] = "answer_edited"
    generation: Id
    edited: str


class AnswerAccepted(_Feedback):
    """The person used the answer as it was."""

    kind: Literal["answer_accepted"] = "answer_accepted"
    generation: Id


class AnswerRated(_Feedback):
    kind: Literal["answer_rated"] = "answer_rated"
    generation: Id
    rating: Rating


class ImagePicked(_Feedback):
    """The person chose `picked` over `over`, all made from `prompt`."""

    kind: Literal["image_picked"] = "image_picked"
    picked: tuple[Sha256, ...] = Field(min_length=1)
    over: tuple[Sha256, ...] = ()
    prompt: str = ""
    generation: Id | None = None  # the answer that wrote the prompt
    repeats: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="How often the image model passes it in an epoch, as kohya has it.",
    )
    to_review: bool = ToReview
    workflow: dict[str, Any] = Field(
        default={},
        description="What they were made by, in ComfyUI's API form: the gate draws with the newest.",
    )


class ImageRated(_Feedback):
    kind: Literal["image_rated"] = "image_rated"
    image: Sha256
    rating: Rating
    prompt: str = ""
    generation: Id | None = None


class PromptEdited(_Feedback):
    """The person changed a node's text between two runs; the images are what each run made."""

    kind: Literal["prompt_edited"] = "prompt_edited"
    before: str
    after: str
    images_before: tuple[Sha256, ...] = ()
    images_after: tuple[Sha256, ...] = ()
    node: str = ""
    generation: Id | None = None


class GraphEdited(_Feedback):
    """The person rewired or re-valued a workflow between two runs, both in ComfyUI's API form."""

    kind: Literal["graph_edited"] = "graph_edited"
    before: dict[str, Any]
    after: dict[str, Any]
    aim: str = ""
    kept: tuple[Sha256, ...] = ()


class SampleUploaded(_Feedback):
    """A training example given as such: the last message is the assistant's answer."""

    kind: Literal["sample_uploaded"] = "sample_uploaded"
    messages: tuple[Message, ...] = Field(min_length=1)
    rejected: str | None = None
    label: bool | None = None
    to_review: bool = ToReview


class Answered(Record):
    """An item of the review queue, and what had asked about it: that does not ask again about the same content."""

    item: Id
    filters: tuple[str, ...] = Field(
        default=(), max_length=64, description="Empty: nothing asks about it again."
    )


class SampleReviewed(_Feedback):
    """A person looked at items of the review queue: they are learned as they are, with other words, or not at all."""

    kind: Literal["sample_reviewed"] = "sample_reviewed"
    decision: Literal["accept", "fix", "reject", "undo"]
    items: tuple[Answered, ...] = Field(default=(), max_length=MOST_REVIEWED)
    text: str | None = Field(default=None, description="fix: what the answer, or prompt, is to be.")
    undoes: Id | None = Field(default=None, description="undo: the decision that is taken back.")

    @model_validator(mode="after")
    def _is_whole(self) -> SampleReviewed:
        undo, fix = self.decision == "undo", self.decision == "fix"
        if undo is not (self.undoes is not None) or undo is bool(self.items):
            raise ValueError("`undo` names the decision that it `undoes`, and the others name `items`")
        if fix is not (self.text is not None) or (fix and len(self.items) != 1):
            raise ValueError("`fix` names one item and gives its `text`, and the others give none")
        if fix and not (self.text or "").strip():
            raise ValueError("`text` is empty: reject what is not to be learned")
        return self


Feedback = Annotated[
    AnswerEdited
    | AnswerAccepted
    | AnswerRated
    | ImagePicked
    | ImageRated
    | PromptEdited
    | GraphEdited
    | SampleUploaded
    | SampleReviewed,
    Field(discriminator="kind"),
]
feedback_adapter: TypeAdapter[Feedback] = TypeAdapter(Feedback)


# --- what is trained on -------------------------------------------------------------------------------------


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

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1].text

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
    """Something in the feedback that a person is asked about. What it names is not learned until it is answered."""

    id: Id
    project: ProjectName
    kind: Literal["disagreement", "trigger"]
    sentence: str
    question: str = ""
    images: tuple[Sha256, ...] = ()
    phrase: str = ""  # trigger: what seems to call up one and the same answer
    choices: tuple[Choice, ...]


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
    by_kind: dict[str, int] = {}
    dropped: dict[str, int] = {}  # reason -> how many
    waiting: int = (
        0  # pieces of feedback that were left for a later turn, since they are too many of one author's
    )
    notes: tuple[str, ...] = ()  # what a person should know of how it was chosen, as sentences
    feedback_seq: int = 0  # the newest feedback it has seen
    created_at: Time = Field(default_factory=now)


# --- what training makes ------------------------------------------------------------------------------------


class RunState(StrEnum):
    QUEUED = "queued"  # written down, not started
    RUNNING = "running"  # its process is alive, or died and will be resumed
    SUCCEEDED = "succeeded"  # adapter/ is whole
    FAILED = "failed"  # `error` says why
    CANCELLED = "cancelled"  # stopped by a person; its last checkpoint is valid

    @property
    def is_open(self) -> bool:
        """Whether the run is still to end."""
        return self in (RunState.QUEUED, RunState.RUNNING)


class Run(Record):
    id: Id
    project: ProjectName
    snapshot: str
    recipe: str
    state: RunState = RunState.QUEUED
    path: str
    parent: int = BASE  # the version that was live: what it started from, unless it is `fresh`
    fresh: bool = False  # it started from the base models: a consolidation
    error: str = ""
    created_at: Time = Field(default_factory=now)
    finished_at: datetime | None = None


class Ancestor(Record):
    """One version that another went on from, by the hash of its content; with who made it, if that was elsewhere."""

    version: Sha256
    publisher: str = ""
    key: str = ""  # that signed it


class Origin(Record):
    """Where a version came from that was made elsewhere."""

    publisher: str  # as its bundle says
    key: str  # that signed it
    project: str  # what it was called there
    number: int
    version: Sha256  # what lineage calls it
    lineage: tuple[Ancestor, ...] = ()
    bundle: Sha256  # of the manifest
    licence: str = ""
    trigger_words: str = ""


class VersionState(StrEnum):
    CANDIDATE = "candidate"  # trained, not judged or not promoted
    LIVE = "live"  # what the project's name answers with
    RETIRED = "retired"  # was live
    REJECTED = "rejected"  # the gate said no
    WITHDRAWN = "withdrawn"  # it learned from feedback that was taken back


class Version(Record):
    project: ProjectName
    number: int = Field(ge=1)
    state: VersionState = VersionState.CANDIDATE
    parent: int = BASE
    snapshot: str = ""
    run: str = ""
    text_adapter: str | None = None  # a PEFT directory
    image_adapter: str | None = None  # a LoRA file with kohya keys
    sha256: str = ""  # of the adapter files' content
    fresh: bool = False  # trained from the base models, not on from its parent's weights
    gate: GateReport | None = None
    canary: CanaryReport | None = None
    origin: Origin | None = None  # it was imported
    created_at: Time = Field(default_factory=now)
    promoted_at: datetime | None = None

    @property
    def adapter_name(self) -> str:
        """The name under which engines know it: never re-used."""
        return f"{self.project}-v{self.number}"


# --- what the gate says -------------------------------------------------------------------------------------


class Verdict(StrEnum):
    PROMOTE = "promote"
    REJECT = "reject"
    ASK = "ask"  # better as far as can be counted, but a person should look at it
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"


Scores = dict[str, tuple[float, float]]
"""What was measured of one item -> (live, candidate)."""


class Measure(Record):
    """Candidate against live on the same items; `low` and `high` bound the mean of candidate - live."""

    metric: str  # "log_likelihood" (nats per token), "edit_distance" (0..1), "denoising_loss", ...
    slice: str
    items: int
    live: float
    candidate: float
    low: float
    high: float
    higher_is_better: bool = True
    base: float | None = None  # the base model's, where it was asked too


class GateItem(Record):
    """One held-out item as both versions saw it."""

    sample: str
    slice: str
    question: str
    images: tuple[Sha256, ...] = ()
    reference: str
    live_answer: str = ""
    candidate_answer: str = ""
    scores: Scores = {}
    base: dict[str, float] = {}  # what the base model scored, where it was asked too


class GateReport(Record):
    project: ProjectName
    live: int
    candidate: int
    verdict: Verdict
    reasons: tuple[str, ...]  # sentences, the deciding one first
    next_step: str = ""  # what to do now, in a sentence
    measures: tuple[Measure, ...] = ()
    details: tuple[str, ...] = ()  # numbers for specialists
    items: tuple[GateItem, ...] = ()
    triggers: tuple[Triggered, ...] = ()  # phrases that call up one answer whatever is asked
    sheet: Sha256 | None = None  # a PNG (blob): what both drew of the same prompts and seeds, side by side
    looks: float = 1.0  # which look this was at its items, on the mean
    level: float = 0.0  # the one-sided level of this look; 0: nothing was tested
    seconds: float = 0.0
    created_at: Time = Field(default_factory=now)


class CanaryVerdict(StrEnum):
    RUNNING = "running"  # nothing is proven yet
    WORSE = "worse"  # proven: it was taken back
    NO_WORSE = "no_worse"  # proven: it is made live where auto_promote is on
    ENDED = "ended"  # by a person, or since another version went live


class CanaryReport(Record):
    """How people treat a version that answers a share of the conversations, beside the live one. A loss is what they
    changed of an answer: 0 where it was used as it was, 1 where nothing was left."""

    project: ProjectName
    version: int
    live: int
    share: float
    verdict: CanaryVerdict = CanaryVerdict.RUNNING
    reason: str = ""
    canary_outcomes: int = 0
    live_outcomes: int = 0
    canary_loss: float = 0.0  # means
    live_loss: float = 0.0
    low: float = -1.0  # bounds of the difference, canary less live, that hold at all times together
    high: float = 1.0
    level: float = 0.0
    after_seq: int = 0  # the newest feedback when it began
    started_at: Time = Field(default_factory=now)
    updated_at: Time = Field(default_factory=now)


Version.model_rebuild()


# --- the loop -----------------------------------------------------------------------------------------------


class LoopState(StrEnum):
    IDLE = "idle"
    CURATING = "curating"
    TRAINING = "training"
    GATING = "gating"
    PROMOTING = "promoting"


class Loop(Record):
    """Where a project's loop stands. One row a project; every transition is one transaction."""

    project: ProjectName
    state: LoopState = LoopState.IDLE
    snapshot: str = ""
    run: str = ""
    version: int = 0
    requested: bool = False  # a person asked for a run
    consolidate: bool = False  # the next turn starts from the base models
    consolidating: bool = False  # the turn under way does, since a person asked for it
    by_hand: bool = False  # the turn under way was asked for by a person
    seen_seq: int = 0  # the newest feedback that a finished turn has used
    held_over: int = 0  # pieces before `seen_seq` that the last turn left for the next one
    looked_seq: int = 0  # the newest that was looked at, and found too little for a turn
    attempts: int = 0  # of the present state
    error: str = ""  # of the last turn, empty when it went well
    # of the last turn: "promoted", "canary", "rejected", "ask", "not_enough_evidence", "not_enough_feedback",
    # "nothing_new", "nothing_to_train", "waiting", "cancelled", "failed"
    outcome: str = ""
    reason: str = ""  # why it ended so, and what comes next, as sentences
    note: str = ""  # what else a person should know of it: who waits, what was set aside, what is asked
    updated_at: datetime = Field(default_factory=now)


class Forgotten(Record):
    """What was taken back, and what that meant for the versions of a project."""

    project: ProjectName
    feedback: tuple[str, ...]  # ids of what was deleted now
    versions: tuple[int, ...]  # those that carry it: withdrawn
    previous: int  # the version that was live
    live: int  # the one that is live now
    retrains: bool = False  # a turn begins that learns the rest anew


class Pruned(Record):
    """What was removed, or would be: versions by name, runs and snapshots by id."""

    versions: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    bytes: int = 0
    busy: tuple[str, ...] = ()  # projects that were left alone, since a turn of theirs is under way


class LoopStatus(Loop):
    """Where a loop stands, and how much waits for its next turn."""

    waiting: int  # pieces of feedback that no finished turn has used
    trigger: int  # so many start a turn by themselves
    canary: CanaryReport | None = None  # how the version that is tried beside the live one does, or did


class Project(Record):
    name: ProjectName
    base_model: str
    live: int = BASE
    image_model: str = ""  # a checkpoint or diffusers folder whose LoRA is trained too; empty: text alone
    image_vae: str = ""  # in place of that model's own; empty: as the setting says
    image_prediction_type: Literal["auto", "epsilon", "v_prediction", "sample"] = (
        "auto"  # auto: as the setting says
    )
    system_prompt: str = ""
    auto: bool = True  # the loop starts by itself
    created_at: Time = Field(default_factory=now)
    canary: int = (
        BASE  # the version that answers `canary_share` of the conversations in place of the live one
    )
    canary_share: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _not_reserved(self) -> Project:
        if self.name in {"base", "live", "candidate"}:
            raise ValueError(f"a project cannot be called {self.name!r}: it is a word of model names")
        if self.name.endswith(".") or _OF_WINDOWS.fullmatch(self.name.partition(".")[0]):
            raise ValueError(f"a project cannot be called {self.name!r}: Windows has no folder of that name")
        return self
