"""Training rows as ms-swift writes them, read strictly: every line is a row or is named as bad.

One line: ``{"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant",
"content": "A pony."}], "images": ["images/ab12.png"]}``, with ``rejected_response`` for preference pairs,
``label`` for labelled answers and any other keys (``id`` names the sample in messages). ``<image>`` tags
stand where the images go, in order. Image paths are relative to the file. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from comfyloop.errors import DataError, NotFound

IMAGE_TAG = "<image>"
Part = Literal["new", "rehearsal", "replay"]
"""What a row is there for: to be learned, to be kept in practice, or to keep the model what it was."""
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_SHOWN = 20


@dataclass(frozen=True)
class Turn:
    role: str  # "system", "user" or "assistant"
    content: str  # with an image tag where each image goes


@dataclass(frozen=True)
class Row:
    """One line that can be trained on, as far as its text tells; its images are not opened yet."""

    line: int
    id: str
    turns: tuple[Turn, ...]
    images: tuple[Path, ...] = ()
    rejected: str | None = None
    label: bool | None = None
    part: Part = "new"

    @property
    def answer(self) -> str:
        return self.turns[-1].content


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be trained on, and why, as the end of a sentence."""

    line: int
    id: str
    reason: str


class UnusableRow(Exception):
    """Why the row at hand cannot be trained on."""


def read_rows(path: Path) -> tuple[list[Row], list[BadRow]]:
    """All lines of a data file, good and bad.

    Raises:
        NotFound: There is no such file.
        DataError: The file is empty or not UTF-8.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"There is no data file {path}.", "Name the train.jsonl of a snapshot.") from None
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name}:{line} is not UTF-8 text.", "Save the file as UTF-8.") from None
    rows: list[Row] = []
    bad: list[BadRow] = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        name = ""
        try:
            value = parse(text, "an object with messages")
            name = _name(value, text)
            rows.append(_row(value, number, name, path.parent))
        except UnusableRow as error:
            bad.append(BadRow(number, name, str(error)))
    if not rows and not bad:
        raise DataError(f"{path} has no rows.", "Add at least one line to train on.")
    return rows, bad


def refuse_or_skip(path: Path, good: int, bad: list[BadRow], skip: bool, max_share: float) -> None:
    """Stop with every bad line named, unless they may be skipped and are few enough.

    Raises:
        DataError: Names file, line and sample of each (the first 20).
    """
    if not bad:
        return
    named = "; ".join(
        f"{path.name}:{b.line}{f' (sample {b.id})' if b.id else ''}: {b.reason}" for b in bad[:_SHOWN]
    )
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    total = good + len(bad)
    what = f"{len(bad)} of {total} rows cannot be trained on: {named}{more}."
    if not skip:
        raise DataError(what, "Correct these lines, or set skip_bad to train on the rest.")
    if len(bad) > max_share * total or good == 0:
        raise DataError(
            what, f"That is more than the share of {max_share:.0%} that may be skipped (max_bad_share)."
        )


def parse(text: str, wanted: str) -> dict[str, Any]:
    """One line of a data file. Raises UnusableRow when it is not `wanted`, a JSON object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnusableRow(f"it is not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise UnusableRow(f"it is a JSON {type(value).__name__}, not {wanted}")
    return value


def _name(value: dict[str, Any], text: str) -> str:
    """The sample's own id, or one made of its content."""
    given = value.get("id")
    return str(given) if given else hashlib.sha256(text.encode()).hexdigest()[:12]


def _row(value: dict[str, Any], line: int, name: str, folder: Path) -> Row:
    turns = _turns(value)
    images = _images(value.get("images"), folder)
    tags = sum(turn.content.count(IMAGE_TAG) for turn in turns)
    if tags != len(images):
        raise UnusableRow(
            f"its text has {tags} {IMAGE_TAG} tag{'s' * (tags != 1)} and it names {len(images)} "
            f"image{'s' * (len(images) != 1)}"
        )
    if turns[-1].role != "assistant":
        raise UnusableRow(f"its last message is the {turns[-1].role}'s, so there is no answer to learn")
    if not turns[-1].content.strip():
        raise UnusableRow("its answer is empty")
    if IMAGE_TAG in turns[-1].content:
        raise UnusableRow("its answer contains an image, which the model cannot write")
    rejected = value.get("rejected_response")
    if rejected is not None and (not isinstance(rejected, str) or not rejected.strip()):
        raise UnusableRow("its rejected_response is not a text")
    label = value.get("label")
    if label is not None and not isinstance(label, bool):
        raise UnusableRow(f"its label is {label!r}, not true or false")
    return Row(line, name, turns, images, rejected, label, _part(value))


def _part(value: dict[str, Any]) -> Part:
    if value.get("replay") is True:
        return "replay"
    return "rehearsal" if value.get("part") == "rehearsal" else "new"


def _turns(value: dict[str, Any]) -> tuple[Turn, ...]:
    messages = value.get("messages", value.get("conversations"))
    if not isinstance(messages, list) or not messages:
        raise UnusableRow("it has no list of messages")
    turns = []
    for position, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise UnusableRow(f"message {position} is a {type(message).__name__}, not an object")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if role not in _ROLES:
            raise UnusableRow(
                f"message {position} has the role {role!r}, which is none of {', '.join(_ROLES)}"
            )
        if not isinstance(content, str):
            raise UnusableRow(f"message {position} has a content of type {type(content).__name__}, not text")
        turns.append(Turn(_ROLES[role], content))
    return tuple(turns)


def _images(value: Any, folder: Path) -> tuple[Path, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UnusableRow(f"its images are a {type(value).__name__}, not a list of paths")
    paths = []
    for image in value:
        path = image.get("path") if isinstance(image, dict) else image
        if not isinstance(path, str) or not path:
            raise UnusableRow(f"one of its images is a {type(image).__name__}, not a path")
        paths.append(folder / path)
    return tuple(paths)
