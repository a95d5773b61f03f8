"""What a kind of part says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part of a message as it is stored; each modality has its own, whose fields say what is valid.

    A model is given a text of it (`model_input`), or its bytes: these are in the blob store, and named by their hash
    in a field `sha256`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: str

    @property
    def model_input(self) -> str | None:
        """What a model reads of it; None where it is given bytes."""
        return None

    @property
    def blob(self) -> str:
        """The hash of its bytes; empty where it has none."""
        return str(getattr(self, "sha256", ""))

    @property
    def preview(self) -> str:
        """What a person is shown of it, in a line."""
        return " ".join((self.model_input or f"[{self.type}]").split())


def text_on_the_wire(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def text_slot(text: str | None) -> dict[str, str]:
    return {"type": "text", "text": text or ""}


@dataclass(frozen=True)
class Modality:
    """
    Attributes:
        name: That of its file, and the `type` of such a part in a record.
        does: What it is, for the documentation.
        part: Such a part as it is stored: what is valid, what a person is shown, what a model is given.
        example: A valid one.
        types: What OpenAI, ms-swift and other tools write as the `type` of such a part.
        read: What a part as any of these write it holds: what a model reads of it, or what says where its bytes are
            (None: the next of the row's list). Raises KeyError, TypeError, ValueError where it holds nothing of the
            kind.
        wire: The part as engines are sent it by OpenAI's API: of its text, or of a URL of its bytes.
        slot: The part as a chat template is given it: a text, or a place that the processor fills.
    """

    name: str
    does: str
    part: type[Part]
    example: Part
    types: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Any]
    wire: Callable[[str], dict[str, Any]] = text_on_the_wire
    slot: Callable[[str | None], dict[str, str]] = text_slot

    @property
    def holds_bytes(self) -> bool:
        return "sha256" in self.part.model_fields
