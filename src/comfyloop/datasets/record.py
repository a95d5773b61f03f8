"""What is known of a data set that is added."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from comfyloop.records import Author, Id, ProjectName, Record, Time, now
from comfyloop.sources import SourceOptions


class DataSetState(StrEnum):
    OPEN = "open"  # files are sent; nothing was read
    FETCHING = "fetching"  # from a hub or a registry
    UNPACKING = "unpacking"
    READING = "reading"  # rows checked and laid aside, pictures stored
    STORING = "storing"  # all rows become feedback at once
    DONE = "done"
    REFUSED = "refused"  # `problems` says why; nothing of it was stored
    FAILED = "failed"  # `error` says why; started again, it goes on

    @property
    def is_under_way(self) -> bool:
        return self in (self.FETCHING, self.UNPACKING, self.READING, self.STORING)


class Request(Record):
    """How a data set is to be read: what looking at it does not tell, or tells wrongly."""

    format: str = Field(default="", max_length=40, description="Empty: found by looking.")
    map: dict[str, str] = Field(
        default={}, description="What it is to us (query, response, images, ...) -> the column."
    )
    encoding: str = Field(
        default="", max_length=40, description="Of its texts; empty: UTF-8, or as the file says."
    )
    question: str = Field(
        default="",
        max_length=4000,
        description="Captions are the answers to this question about their picture; empty: prompts that drew it.",
    )
    skip_bad: bool = Field(
        default=False, description="Leave out rows that cannot be used, and tell; else none is stored."
    )
    limit: int = Field(default=0, ge=0, description="Take so many rows at most; 0: all.")

    @property
    def options(self) -> SourceOptions:
        return SourceOptions(self.map, self.encoding, self.question)


class DataSet(Record):
    id: Id
    project: ProjectName
    author: Author = "local"
    name: str = Field(max_length=300)
    source: str = Field(default="upload", description="upload, builtin:NAME, hf:ID or ms:ID")
    licence: str = Field(default="", max_length=200)
    state: DataSetState = DataSetState.OPEN
    request: Request = Request()
    format: str = ""  # what it was found to be
    mapping: dict[str, str] = Field(default={}, description="What its columns are; empty: rows as they are.")
    total: int = 0  # files, bytes or rows of the present state, where that is known
    progress: int = 0
    rows: int = 0  # read so far
    bad: int = 0
    pictures: int = 0
    problems: tuple[str, ...] = ()  # the first rows that cannot be used, each with file and line
    notes: tuple[str, ...] = ()
    stored: int = 0
    duplicates: int = 0  # rows that were feedback already
    error: str = ""
    created_at: Time = Field(default_factory=now)
    updated_at: Time = Field(default_factory=now)


class SentFile(Record):
    path: str
    bytes: int
    sha256: str | None = None  # None: not all of it has come


class SampleShown(Record):
    """A row as it would be taken, shortened."""

    place: str
    messages: list[dict[str, str]] = Field(default=[])
    images: list[str] = Field(default=[])
    rejected: str | None = None
    label: bool | None = None
    problem: str = ""


class Preview(Record):
    """What a data set is found to be, before any of it is taken."""

    format: str
    what: str
    mapping: dict[str, str] = Field(
        description="What it is to us -> the column. Empty: the format knows the rows as they are."
    )
    guessed: bool = Field(description="The mapping was guessed by the columns' names.")
    columns: tuple[str, ...]
    left_out: tuple[str, ...] = Field(description="Columns that the mapping leaves out.")
    samples: tuple[SampleShown, ...]
    targets: dict[str, Any] = Field(description="What a column may be mapped to.")
