"""What a person did."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from comfyloop.modalities.image import Sha256
from comfyloop.records.base import (
    MOST_REVIEWED,
    Author,
    Box,
    Id,
    ProjectName,
    Rating,
    Record,
    Time,
    new_id,
    now,
)
from comfyloop.records.chat import Message


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
    crop: Box | None = Field(
        default=None,
        description="The part of the picture that was picked which counts, by a person: left, top, right, bottom in "
        "pixels. The image model learns that alone.",
    )
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
