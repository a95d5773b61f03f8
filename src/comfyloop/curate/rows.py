"""Samples as ms-swift's rows: JSON lines of ``messages``, ``images``, ``rejected_response`` and ``label``, and for the
image model ``chosen`` and ``rejected``.

Written: one object a line, roles system/user/assistant, ``<image>`` in the text wherever a picture belongs,
``images`` in the same order as paths relative to the file. A text that holds such a tag itself is written in
parts (OpenAI's list of text and image), in which text is text. Read by `comfyloop.formats`, as all rows are.
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
from comfyloop.formats import Row, Turn
from comfyloop.records import ImagePart, Message, Part, Sample, TextPart


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
    turns = tuple(Turn(message.role, _parts(message)) for message in sample.messages)
    images = [image_path(image) for image in sample.images]
    chosen, rejected = (image_path(image) if image else None for image in (sample.picked, sample.over))
    row = Row(0, sample.id, turns, rejected=sample.rejected, label=sample.label)
    written = with_images(formats.to_json(row, images, chosen, rejected), images)
    if extra:
        written |= {
            "id": sample.id,
            "kind": sample.kind,
            "slice": sample.slice,
            "group": sample.group,
            "replay": sample.replay,
            "origin": sample.origin,
            "author": sample.author,
            "feedback": list(sample.feedback),
            **({"repeats": sample.repeats} if sample.repeats != 1 else {}),
            **({"crop": list(sample.crop)} if sample.crop else {}),
        }
    return written


def _parts(message: Message) -> tuple[str | None, ...]:
    return tuple(part.model_input for part in message.content)


def with_images(row: dict[str, Any], images: Sequence[str]) -> dict[str, Any]:
    """A row with its list of images in its place, also where that is empty."""
    return {"messages": row["messages"], "images": list(images), **row}


def dump_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of a ``.jsonl`` file. Either all rows have ``images`` or none, so that columns agree."""
    pictures = any(row.get("images") for row in rows)
    lines = [{k: v for k, v in row.items() if k != "images" or pictures} for row in rows]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


# --- rows as records ----------------------------------------------------------------------------------------


def read_samples(path: Path, project: str) -> list[Sample]:
    """The samples of a file that a snapshot wrote (images named by their hash).

    Raises:
        DataError: The file was not written by a snapshot, or was changed since.
    """
    samples = []
    for row in formats.read_whole(
        path, "Restore the file, or make the snapshot again.", may_be_empty=True
    ).good:
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
                picked=_hash_of(row.chosen_image),
                over=_hash_of(row.rejected_image),
                slice=extra["slice"],
                replay=extra["replay"],
                repeats=int(extra.get("repeats", 1)),
                crop=tuple(extra["crop"]) if extra.get("crop") else None,
            )
        except (KeyError, TypeError, ValidationError) as error:
            raise DataError(f"{place}: this row was not written by a snapshot ({error}).") from error
        if sample.id != row.id:
            raise DataError(f"{place}: the row was changed after the snapshot was made (its id differs).")
        samples.append(sample.model_copy(update={"group": extra["group"]}))
    return samples


def _hash_of(image: formats.Picture | None) -> str | None:
    return Path(image.name).stem if image is not None else None
