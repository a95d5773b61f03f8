"""From the columns of a source to rows: guessed by their names where no format knows them, said by a person else.

A map is ``{what it is to us: the column}``. With one, columns that are not in it are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfyloop import formats
from comfyloop.errors import InvalidInput
from comfyloop.formats import Row, UnusableRow
from comfyloop.sources.source import SourceItem, SourceOptions
from comfyloop.sources.tree import outside_name, same_name

TARGETS = {
    "messages": "the conversation, as a list of messages",
    "system": "the system prompt",
    "query": "what was asked",
    "response": "the answer",
    "rejected": "the answer that was not wanted, or the picture",
    "label": "whether the answer was wanted: true or false",
    "images": "the picture, or pictures, that are asked about",
    "caption": "the words of a picture",
    "chosen": "the answer or picture that was wanted",
    "id": "the row's own name",
}
_WORDS = {
    "messages": "messages conversations conversation dialog dialogue 对话",
    "system": "system systemprompt",
    "query": "query question instruction prompt problem input user 问题 提问 指令",
    "response": "response answer output completion target reply assistant expectedoutput 回答 答案 回复 输出",
    "rejected": "rejected rejectedresponse rejectedanswer bad worse",
    "images": "images image img picture photo pic imagepath imagefile filename jpg png webp 图片 图像 照片",
    "caption": "caption text description title alttext alt tags name zh en 描述 标题 文本 说明",
    "chosen": "chosen preferred better",
}
"""By which names, written small and without signs, columns are known; the first that is there counts."""
_KEPT = ("comment", "repeats", "crop")
"""What a source adds of its own, whatever the columns are called."""
_TRUE = ("true", "1", "yes", "good", "up", "like", "wanted")
_FALSE = ("false", "0", "no", "bad", "down", "dislike", "unwanted", "-1")


def parse_map(given: Sequence[str]) -> dict[str, str]:
    """``query=question`` and the like. Raises InvalidInput."""
    found: dict[str, str] = {}
    for one in given:
        target, equals, column = one.partition("=")
        if not equals or not column:
            raise InvalidInput(
                f"{one!r} is no mapping.", "Write it as query=question: what it is to us, then the column."
            )
        found[target.strip()] = column.strip()
    check_map(found)
    return found


def check_map(given: Mapping[str, str]) -> None:
    """Raises InvalidInput: A target is none."""
    for target in given:
        if target not in TARGETS:
            raise InvalidInput(f"Nothing is called {target!r} here.", f"Map to one of {', '.join(TARGETS)}.")


def guess(columns: Sequence[str]) -> dict[str, str]:
    """A map by the names of columns; empty where they say too little."""
    plain = {re.sub(r"[\W_]+", "", column.lower()): column for column in reversed(columns)}
    found = {
        target: next(plain[word] for word in words.split() if word in plain)
        for target, words in _WORDS.items()
        if any(word in plain for word in words.split())
    }
    if "messages" in found:
        return {target: found[target] for target in ("messages", "system", "images") if target in found}
    if "images" in found and ("query" in found) != ("response" in found):  # one text: the picture's words
        found.setdefault("caption", found.pop("query", "") or found.pop("response", ""))
        found.pop("query", None), found.pop("response", None)
    if "query" in found and "response" in found:
        found.pop("caption", None)
        return found
    if "images" in found and "caption" in found:
        return {target: found[target] for target in ("images", "caption")}
    return {}


class RowMapping:
    """How the objects of a source become rows, decided at the first of them.

    Args:
        root: The folder that its pictures must be in.
    """

    def __init__(self, options: SourceOptions, root: Path) -> None:
        check_map(options.map)
        self.options, self.root = options, root.resolve()
        self.map: dict[str, str] = dict(options.map)
        self.guessed = False
        self.columns: tuple[str, ...] = ()
        self._decided = bool(self.map)
        self._names: dict[Path, dict[str, str]] = {}  # of a folder, as they are read: as they are

    def decide(self, first: Sequence[SourceItem]) -> None:
        """Whether a format knows the rows as they are, by the first few; else which columns are what."""
        values = [one.item.value for one in first if one.item.value is not None]
        self.columns = tuple(dict.fromkeys(key for value in values for key in value))
        if self._decided or not values:
            return
        self._decided = True
        if not self.options.question and any(_as_it_is(one) for one in first):
            return
        self.map = guess(self.columns)
        self.guessed = bool(self.map)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Columns that a map leaves out."""
        return (
            tuple(c for c in self.columns if c not in self.map.values() and c not in _KEPT)
            if self.map
            else ()
        )

    def row(self, one: SourceItem) -> Row:
        """Raises UnusableRow."""
        return self._inside(self.row_as_written(one), one.folder)

    def row_as_written(self, one: SourceItem) -> Row:
        """The row with its pictures wherever its paths lead. Raises UnusableRow."""
        item = one.item
        if item.value is None:
            raise UnusableRow(item.problem)
        if self.map:
            item = replace(item, value=self._mapped(item.value))
        return formats.row_of(item, one.folder)

    def _mapped(self, value: Mapping[str, Any]) -> dict[str, Any]:
        missing = [column for column in self.map.values() if column not in value]
        present = {target: value[column] for target, column in self.map.items() if column in value}
        if missing and len(missing) == len(self.map):
            raise UnusableRow(
                f"it has no column {missing[0]!r}; it has {', '.join(map(repr, list(value)[:12])) or 'none'}"
            )
        row: dict[str, Any] = {
            key: present[key] for key in ("messages", "system", "query", "response", "id") if key in present
        }
        if isinstance(row.get("messages"), str):
            row["messages"] = _parsed(row["messages"], self.map["messages"])
        images = _listed(present["images"]) if "images" in present else []
        if "caption" in self.map:
            row |= self._captioned(present, images)
        elif images:
            row["images"] = images
        if present.get("rejected") is not None:
            row["rejected"] = present["rejected"]
        if present.get("chosen") is not None:
            row["chosen"] = present["chosen"]
        if present.get("label") is not None:
            row["label"] = _label(present["label"])
        row |= {key: value[key] for key in _KEPT if value.get(key)}
        return row

    def _captioned(self, present: Mapping[str, Any], images: list[Any]) -> dict[str, Any]:
        caption = present.get("caption")
        if isinstance(caption, list):
            caption = next((one for one in caption if isinstance(one, str) and one.strip()), None)
        if not isinstance(caption, str) or not caption.strip():
            raise UnusableRow(f"it has no words under {self.map['caption']!r}")
        if len(images) != 1:
            raise UnusableRow(
                f"it has {len(images)} pictures for one caption" if images else "it has no picture"
            )
        text = [{"type": "text", "text": caption.strip()}]
        if self.options.question:
            asked = [{"type": "image"}, {"type": "text", "text": self.options.question}]
            said = [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]
            return {"messages": said, "images": images}
        source = images[0]
        return {
            "messages": [{"role": "user", "content": text}],
            "chosen": source if isinstance(source, dict) else {"path": source},
        }

    def _inside(self, row: Row, folder: Path) -> Row:
        """A row's pictures, all of them in the data: what was sent may name no other file of this machine."""

        def inside(picture: formats.Picture) -> formats.Picture:
            if not isinstance(picture, Path):
                return picture
            try:
                place = picture.resolve()
                if place.is_relative_to(self.root) and not place.is_file():
                    place = self._otherwise_written(place).resolve()
            except (OSError, RuntimeError, ValueError):
                raise UnusableRow(f"the path of its image {picture.name} cannot be followed") from None
            if place.is_relative_to(self.root) and place.is_file():
                return place
            named = as_written(picture, folder)
            sent = self.root / outside_name(named)
            if sent.is_file():
                return sent
            raise UnusableRow(f"its image {named[:200]} is not in the data")

        return replace(
            row,
            images=tuple(map(inside, row.images)),
            chosen_image=inside(row.chosen_image) if row.chosen_image else None,
            rejected_image=inside(row.rejected_image) if row.rejected_image else None,
        )

    def _otherwise_written(self, place: Path) -> Path:
        """A path below the root by the names that its folders really have, which may be in another Unicode form."""
        found = self.root
        for part in place.relative_to(self.root).parts:
            if found not in self._names:
                there = found.iterdir() if found.is_dir() else ()
                self._names[found] = {same_name(file.name): file.name for file in there}
            found /= self._names[found].get(same_name(part), part)
        return found


def as_written(picture: Path, folder: Path) -> str:
    """The path of a picture as its row has it."""
    return picture.relative_to(folder).as_posix() if picture.is_relative_to(folder) else str(picture)


def _as_it_is(one: SourceItem) -> bool:
    try:
        formats.row_of(one.item, one.folder)
    except UnusableRow:
        return False
    return True


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parsed(value, "images")
    return [one for one in (value if isinstance(value, list) else [value]) if one not in (None, "")]


def _parsed(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnusableRow(f"what stands under {column!r} is not JSON") from None


def _label(value: Any) -> bool:
    word = str(value).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise UnusableRow(f"its label is {value!r}, not true or false")
