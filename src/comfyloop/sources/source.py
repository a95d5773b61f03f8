"""What a kind of source declares, and what it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyloop.formats import Item
from comfyloop.sources.tree import Tree


@dataclass(frozen=True)
class SourceItem:
    """One object, or why there is none at that place."""

    item: Item
    file: str  # as a person calls it
    folder: Path  # what the pictures that it names are beside

    @property
    def place(self) -> str:
        line, number = self.item.line, self.item.item
        return self.file + (f":{line}" if line else "") + (f" (item {number})" if number else "")


@dataclass(frozen=True)
class SourceOptions:
    """What a person says of a source that looking at it does not tell."""

    map: Mapping[str, str] = field(default_factory=dict)  # what it is to us -> the column
    encoding: str = ""  # of its texts
    question: str = (
        ""  # captions are answers to it, about their picture; empty: prompts that drew the picture
    )


@dataclass(frozen=True)
class DataSource:
    name: str
    what: str  # what it is, for people
    fits: Callable[[Tree], bool]
    read: Callable[[Tree, SourceOptions], Iterator[SourceItem]]


def found(
    value: dict[str, Any] | None, file: str, folder: Path, problem: str = "", line: int = 0
) -> SourceItem:
    """An object that a source made itself."""
    return SourceItem(Item(line, file, value, problem), file, folder)
