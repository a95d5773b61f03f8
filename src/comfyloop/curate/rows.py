"""ms-swift's rows: JSON lines of ``messages``, ``images``, ``rejected_response`` and ``label``.

Written: one object a line, roles system/user/assistant, ``<image>`` in the text wherever a picture belongs,
``images`` in the same order as paths relative to the file. Read: that, and what ms-swift also takes (roles
human/gpt/bot, ``conversations`` of from/value, ShareGPT's ``conversation`` of human/assistant pairs, Alpaca's
instruction/input/output, the older query/response/history) from ``.jsonl`` or from a ``.json`` array. A row
that cannot be used is named by file and line; nothing is ever replaced or left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from comfyloop.curate.filters.reserved_tag import TAGS
from comfyloop.curate.samples import Source, canonical, make
from comfyloop.errors import DataError, StorageError
from comfyloop.records import ImagePart, Message, Part, Sample, TextPart

TAG = "<image>"
ERRORS_SHOWN = 20

_Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, _Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}
_STANDARD = ("messages", "images", "rejected_response", "label")
_QUERY = ("query", "prompt", "instruction", "question", "problem")
_RESPONSE = ("response", "answer", "output", "target", "completion")
_UNUSABLE = ("videos", "audios", "tools", "objects", "rejected_messages", "rejected_images")


@dataclass(frozen=True)
class Row:
    """One row as read: image tags are still in the text, `images` are paths (or data: URLs) as written."""

    place: str  # "train.jsonl:17"
    messages: tuple[tuple[_Role, str], ...]
    images: tuple[str, ...] = ()
    rejected: str | None = None
    label: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # every other key of the row

    def to_messages(self, hashes: Sequence[str]) -> tuple[Message, ...]:
        """The messages with the k-th ``<image>`` replaced by the k-th of `hashes` (SHA-256, hex)."""
        names = iter(hashes)
        messages = []
        for role, content in self.messages:
            parts: list[Part] = []
            for index, text in enumerate(content.split(TAG)):
                if index:
                    parts.append(ImagePart(sha256=next(names)))
                parts.append(TextPart(text=text))
            messages.append(canonical(Message(role=role, content=tuple(parts))))
        return tuple(messages)


# --- writing ------------------------------------------------------------------------------------------------


def row_of(sample: Sample, image_path: Callable[[str], str], *, extra: bool = True) -> dict[str, Any]:
    """One sample as a row. `extra` adds id, slice, group, ..., which ms-swift ignores.

    Raises:
        DataError: A text contains ``<image>`` or another tag that the format cannot quote.
    """
    for text in (*(m.text for m in sample.messages), sample.rejected or ""):
        if tag := TAGS.search(text):
            raise DataError(
                f"Sample {sample.id} has {tag.group()} in its text, which a data file reads as a picture.",
                "Leave the sample out, or write the tag differently.",
            )
    row: dict[str, Any] = {
        "messages": [
            {
                "role": m.role,
                "content": "".join(p.text if isinstance(p, TextPart) else TAG for p in m.content),
            }
            for m in sample.messages
        ],
        "images": [image_path(image) for image in sample.images],
    }
    if sample.rejected is not None:
        row["rejected_response"] = sample.rejected
    if sample.label is not None:
        row["label"] = sample.label
    if sample.picked is not None:
        row["picked"] = image_path(sample.picked)
    if sample.over is not None:
        row["over"] = image_path(sample.over)
    if extra:
        row |= {
            "id": sample.id,
            "kind": sample.kind,
            "slice": sample.slice,
            "group": sample.group,
            "replay": sample.replay,
            "origin": sample.origin,
            "author": sample.author,
            "feedback": list(sample.feedback),
        }
    return row


def dump_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of a ``.jsonl`` file. Either all rows have ``images`` or none, so that columns agree."""
    pictures = any(row.get("images") for row in rows)
    lines = [{k: v for k, v in row.items() if k != "images" or pictures} for row in rows]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_rows(path: Path, samples: Sequence[Sample], image_path: Callable[[str], str]) -> None:
    path.write_text(dump_rows([row_of(sample, image_path) for sample in samples]), encoding="utf-8")


# --- reading ------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """All rows of a file.

    Raises:
        DataError: Some rows cannot be used; each is named with file and line (the first 20 of them).
        StorageError: The file cannot be read.
    """
    return _read(path, answers=True)


def _read(path: Path, *, answers: bool) -> list[Row]:
    rows: list[Row] = []
    errors: list[str] = []
    for place, raw in _objects(path, errors):
        try:
            rows.append(_row(place, raw, answers))
        except ValueError as error:
            errors.append(f"{place}: {error}")
    if errors:
        more = f"\n... and {len(errors) - ERRORS_SHOWN} more" if len(errors) > ERRORS_SHOWN else ""
        raise DataError(
            f"{len(errors)} of {len(rows) + len(errors)} rows cannot be used:\n"
            + "\n".join(errors[:ERRORS_SHOWN])
            + more,
            "Mend or remove these lines; nothing was imported.",
        )
    return rows


def _objects(path: Path, errors: list[str]) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{number}: the text is not UTF-8.", "Save the file as UTF-8.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
    if path.suffix == ".json":
        try:
            items = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}.") from error
        if not isinstance(items, list):
            raise DataError(f"{path} is not an array of rows.", "Write one object a line into a .jsonl file.")
        yield from ((f"{path}, item {n}", item) for n, item in enumerate(items, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            errors.append(f"{path}:{number}: not JSON ({error})")


def _row(place: str, raw: Any, answers: bool) -> Row:
    if not isinstance(raw, dict):
        raise ValueError('a row is an object, such as {"messages": [...]}')
    row = {key: value for key, value in raw.items() if value is not None}
    if unusable := [key for key in _UNUSABLE if row.get(key)]:
        raise ValueError(f"{', '.join(unusable)} cannot be used")
    messages = _messages(row)
    if answers and messages[-1][0] != "assistant":
        raise ValueError(f"the last message is the {messages[-1][0]}'s: there is no answer to learn")
    images = row.pop("images", [])
    images = [images] if isinstance(images, str | dict) else images
    if not isinstance(images, list):
        raise ValueError("images is not a list of paths")
    paths = [_image(image) for image in images]
    tags = sum(content.count(TAG) for _, content in messages)
    if tags != len(paths):
        raise ValueError(f"{tags} {TAG} in the text but {len(paths)} images: each picture needs its {TAG}")
    rejected, label = row.pop("rejected_response", None), row.pop("label", None)
    if not (rejected is None or isinstance(rejected, str)):
        raise ValueError("rejected_response is not a text")
    if rejected is not None and rejected.strip() == messages[-1][1].strip():
        raise ValueError("rejected_response is the same as the answer")
    if not (label is None or isinstance(label, bool)):
        raise ValueError("label is neither true nor false")
    extra = {key: value for key, value in row.items() if key not in _STANDARD}
    return Row(place, messages, tuple(paths), rejected, label, extra)


def _messages(row: dict[str, Any]) -> tuple[tuple[_Role, str], ...]:
    """Takes the messages out of a row, whichever form they have."""
    turns: list[tuple[Any, Any]] = []
    key = next((k for k in ("messages", "conversations", "conversation") if k in row), None)
    if key is not None:
        listed = row.pop(key)
        if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
            raise ValueError(f"{key} is not a list of objects")
        for turn in listed:
            if "role" in turn or "from" in turn:
                turns.append((turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))))
            else:
                turns += [
                    (role, turn[role])
                    for role in ("user", "human", "assistant", "gpt", "bot")
                    if role in turn
                ]
    else:
        turns = _query_response(row)
    system = row.pop("system", None) or row.pop("system_prompt", None)
    if system is not None and not (turns and turns[0][0] == "system"):
        turns.insert(0, ("system", system))
    if not turns:
        raise ValueError("there are no messages")
    messages: list[tuple[_Role, str]] = []
    for number, (role, content) in enumerate(turns, start=1):
        if not isinstance(role, str) or role not in _ROLES:
            known = ", ".join(_ROLES)
            raise ValueError(f"message {number} has the role {role!r}; known are {known}")
        if not isinstance(content, str):
            raise ValueError(f"the content of message {number} is not a text")
        messages.append((_ROLES[role], content))
    if not messages[-1][1].replace(TAG, "").strip():
        raise ValueError(f"the {messages[-1][0]}'s last message is empty")
    return tuple(messages)


def _query_response(row: dict[str, Any]) -> list[tuple[Any, Any]]:
    query = next((row.pop(key) for key in _QUERY if key in row), None)
    if isinstance(row.get("input"), str):
        given = row.pop("input")
        query = f"{query}\n{given}" if query and given else query or given
    response = next((row.pop(key) for key in _RESPONSE if key in row), None)
    history = row.pop("history", [])
    if query is None or response is None:
        raise ValueError("there are neither messages nor a query with its response")
    if not isinstance(history, list) or not all(isinstance(t, list) and len(t) == 2 for t in history):
        raise ValueError("history is not a list of [query, response] pairs")
    pairs = [*history, [query, response]]
    return [turn for asked, said in pairs for turn in (("user", asked), ("assistant", said))]


def _image(image: Any) -> str:
    path = image.get("path") if isinstance(image, dict) else image
    if not isinstance(path, str) or not path:
        raise ValueError(f"an image is given as {json.dumps(image)[:80]}, not as a path")
    if path.startswith(("http://", "https://")):
        raise ValueError(f"the image {path[:80]} is a web address: download it and give its path")
    return path


# --- rows as records ----------------------------------------------------------------------------------------


def read_samples(path: Path, project: str) -> list[Sample]:
    """The samples of a file that a snapshot wrote (images named by their hash).

    Raises:
        DataError: The file was not written by a snapshot, or was changed since.
    """
    samples = []
    for row in _read(path, answers=False):
        extra = row.extra
        try:
            source = Source(project, tuple(extra["feedback"]), str(extra["origin"]), str(extra["author"]))
            sample = make(
                extra["kind"],
                row.to_messages([Path(image).stem for image in row.images]),
                source,
                rejected=row.rejected,
                label=row.label,
                picked=Path(extra["picked"]).stem if "picked" in extra else None,
                over=Path(extra["over"]).stem if "over" in extra else None,
                slice=extra["slice"],
                replay=extra["replay"],
            )
        except (KeyError, TypeError, ValidationError) as error:
            raise DataError(f"{row.place}: this row was not written by a snapshot ({error}).") from error
        if sample.id != extra.get("id"):
            raise DataError(f"{row.place}: the row was changed after the snapshot was made (its id differs).")
        samples.append(sample)
    return samples
