"""What a model reads and writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import Field

from comfyloop.modalities import MODALITIES, ImagePart, TextPart
from comfyloop.records.base import Id, ProjectName, Record, Time, now

if TYPE_CHECKING:
    from comfyloop.modalities import Part as Part
else:  # one of those that modalities declare
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
