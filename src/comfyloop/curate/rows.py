"""Samples as ms-swift's rows: JSON lines of ``messages``, ``images``, ``rejected_response`` and ``label``.

Written: one object a line, roles system/user/assistant, ``<image>`` in the text wherever a picture belongs,
``images`` in the same order as paths relative to the file. A text that holds such a tag itself is written in
parts (OpenAI's list of text and image), in which text is text. Read: that, and whatever `comfyloop.formats`
reads. A row that cannot be used is named by file and line; nothing is ever replaced or left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from comfyloop import formats
from comfyloop.curate.samples import Source, canonical, make
from comfyloop.errors import DataError
from comfyloop.formats import Row, Rows
from comfyloop.records import ImagePart, Message, Part, Sample, TextPart

ERRORS_SHOWN = 20


def to_messages(row: Row, hashes: Sequence[str]) -> tuple[Message, ...]:
    """A row's messages with the k-th place of a picture given to the k-th of `hashes` (SHA-256, hex)."""
    names = iter(hashes)
    messages = []
    for turn in row.turns:
        parts: list[Part] = [
            ImagePart(sha256=next(names)) if part is None else TextPart(text=part) for part in turn.parts
        ]
        role = cast(Literal["system", "user", "assistant"], turn.role)
        messages.append(canonical(Message(role=role, content=tuple(parts))))
    return tuple(messages)


# --- writing ------------------------------------------------------------------------------------------------


def row_of(sample: Sample, image_path: Callable[[str], str], *, extra: bool = True) -> dict[str, Any]:
    """One sample as a row. `extra` adds id, slice, group, ..., which ms-swift ignores."""
    row: dict[str, Any] = {
        "messages": [{"role": m.role, "content": _content(m)} for m in sample.messages],
        "images": [image_path(image) for image in sample.images],
    }
    if sample.rejected is not None:
        row["rejected_response"] = formats.rejected_as_json(sample.rejected)
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


def _content(message: Message) -> str | list[dict[str, str]]:
    return formats.content_as_json([p.text if isinstance(p, TextPart) else None for p in message.content])


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
    return read_file(path).good


def read_file(path: Path, *, answers: bool = True) -> Rows:
    """As `read_rows`, with what a person should know of the file; `answers` as of `formats.read`."""
    found = formats.read(path, answers=answers, may_be_empty=not answers)
    if found.bad:
        named = [f"{path}:{bad.where}: {bad.reason}" for bad in found.bad[:ERRORS_SHOWN]]
        more = f"\n... and {len(found.bad) - ERRORS_SHOWN} more" if len(found.bad) > ERRORS_SHOWN else ""
        raise DataError(
            f"{len(found.bad)} of {len(found.good) + len(found.bad)} rows cannot be used:\n"
            + "\n".join(named)
            + more,
            "Mend or remove these lines; nothing was imported.",
        )
    return found


# --- rows as records ----------------------------------------------------------------------------------------


def read_samples(path: Path, project: str) -> list[Sample]:
    """The samples of a file that a snapshot wrote (images named by their hash).

    Raises:
        DataError: The file was not written by a snapshot, or was changed since.
    """
    samples = []
    for row in read_file(path, answers=False).good:
        extra = row.extra
        place = f"{path}:{row.where}"
        try:
            source = Source(project, tuple(extra["feedback"]), str(extra["origin"]), str(extra["author"]))
            sample = make(
                extra["kind"],
                to_messages(row, [Path(image.name).stem for image in row.images]),
                source,
                rejected=row.rejected,
                label=row.label,
                picked=Path(extra["picked"]).stem if "picked" in extra else None,
                over=Path(extra["over"]).stem if "over" in extra else None,
                slice=extra["slice"],
                replay=extra["replay"],
            )
        except (KeyError, TypeError, ValidationError) as error:
            raise DataError(f"{place}: this row was not written by a snapshot ({error}).") from error
        if sample.id != row.id:
            raise DataError(f"{place}: the row was changed after the snapshot was made (its id differs).")
        samples.append(sample.model_copy(update={"group": extra["group"]}))
    return samples
