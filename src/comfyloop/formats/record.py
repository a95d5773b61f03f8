"""The record type that every row is read into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from comfyloop.errors import ComfyLoopError
from comfyloop.media import data_urls

IMAGE_TAG = "<image>"


@dataclass(frozen=True)
class Item:
    """One object of a file, or the problem at that place."""

    line: int
    text: str
    value: dict[str, Any] | None
    problem: str = ""
    item: int = 0  # from 1, in an array


class UnusableRow(Exception):
    """Why the row at hand cannot be trained on, as the end of a sentence about it."""


def only(row: dict[str, Any], keys: Sequence[str]) -> Any:
    """Remove and return the value under one of the keys; None if there is none.

    Raises:
        UnusableRow: Two of them say different things.
    """
    entries = [(key, row.pop(key)) for key in keys if key in row]
    values = [(key, value) for key, value in entries if value is not None]
    if len(values) > 1 and any(value != values[0][1] for _, value in values):
        raise UnusableRow(f"it has both {values[0][0]} and {values[1][0]}")
    return values[0][1] if values else None


@dataclass(frozen=True)
class Inline:
    """A picture embedded in the row as a data: URL. It is read like a path."""

    url: str

    @property
    def name(self) -> str:
        return f"{self.url[:24]}..."

    def __str__(self) -> str:
        return self.url

    def read_bytes(self) -> bytes:
        """Raises UnusableRow when it is no data: URL of a picture."""
        try:
            return data_urls.decode(self.url)
        except ComfyLoopError as error:
            raise UnusableRow(f"its image {self.name} cannot be read ({error.message})") from None


Picture = Path | Inline


def picture_of(source: str, folder: Path = Path()) -> Picture:
    """A picture by its data: URL, or by its path, which may be relative to `folder`."""
    return Inline(source) if data_urls.is_one(source) else folder / source


Part = Literal["new", "rehearsal", "replay"]
"""What a row is there for: to be learned, to be kept in practice, or to keep the model what it was."""


@dataclass(frozen=True)
class Turn:
    """One message.

    `content` is a list of parts: texts, and None for a picture. A plain string stands for the parts around its
    ``<image>`` tags.
    """

    role: str  # "system", "user" or "assistant"
    content: str | tuple[str | None, ...]
    learn: bool = True  # of an answer: whether the row wants it learnt

    @property
    def parts(self) -> tuple[str | None, ...]:
        if not isinstance(self.content, str):
            return self.content
        parts: list[str | None] = []
        for position, text in enumerate(self.content.split(IMAGE_TAG)):
            if position:
                parts.append(None)
            if text:
                parts.append(text)
        return tuple(parts)

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if part is not None)

    @property
    def pictures(self) -> int:
        return self.parts.count(None)


@dataclass(frozen=True)
class Row:
    """One row that can be trained on, judging by its text; its pictures are not opened yet.

    The last turn is the answer to learn. Where a picture was kept it is the prompt: an answer too, to the brief before
    it, or the user's.
    """

    line: int  # of the file, from 1, where the row begins
    id: str
    turns: tuple[Turn, ...]
    images: tuple[Picture, ...] = ()  # one for each place in the turns, in order
    rejected: str | None = None
    label: bool | None = None
    part: Part = "new"
    item: int = 0  # from 1, in a file that is an array
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys that say nothing to training
    chosen_image: Picture | None = None  # the picture that was kept of what the last message asks to draw
    rejected_image: Picture | None = None  # one of the same prompt that it was kept over

    @property
    def answer(self) -> str:
        return self.turns[-1].text

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All that it names."""
        own = (one for one in (self.chosen_image, self.rejected_image) if one is not None)
        return (*self.images, *own)

    @property
    def is_of_a_picture(self) -> bool:
        """Whether it is a row of the image model."""
        return self.chosen_image is not None

    @property
    def where(self) -> str:
        return place_of(self.line, self.item)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be trained on, and why, as the end of a sentence."""

    line: int
    id: str
    reason: str
    item: int = 0

    @property
    def where(self) -> str:
        return place_of(self.line, self.item)


def place_of(line: int, item: int) -> str:
    return f"{line} (item {item})" if item else str(line)
