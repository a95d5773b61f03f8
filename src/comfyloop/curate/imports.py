"""Rows from elsewhere as feedback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from pydantic import Field, TypeAdapter, ValidationError

from comfyloop import formats
from comfyloop.curate.rows import to_messages
from comfyloop.formats import Row
from comfyloop.records import Box, ImagePicked, Record, SampleUploaded

Uploaded = SampleUploaded | ImagePicked
_MOST_KEYS = 50


def unsayable(row: Row) -> str:
    """What no feedback could keep of a row of the image model; "" where there is nothing."""
    if not row.is_of_a_picture:
        return ""
    if not row.answer.strip():
        return "it has a picture and no prompt that it was made from"
    if len(row.turns) > 1 or row.images or row.rejected is not None or row.label is not None:
        return (
            "it has a picture that was kept, and more than the prompt: leave out the conversation to feed back the "
            "picture, or the picture to feed back the conversation"
        )
    if row.extra.get("crop") is not None and _crop(row) is None:
        return "its crop is no box: give left, top, right and bottom in pixels of the picture"
    return ""


def feedback_from(row: Row, project: str, author: str, hashes: Mapping[str, str]) -> Uploaded:
    """A row as the feedback that it stands for. The id is made from the content, so that the same row twice is one.

    Args:
        hashes: Of each of the row's pictures, by its name as a string.
    """
    comment = str(row.extra.get("comment") or "")
    more: list[object] = [comment] if comment else []
    if row.is_of_a_picture:
        chosen, over = (
            [hashes[str(image)]] if image else [] for image in (row.chosen_image, row.rejected_image)
        )
        repeats = _repeats(row)
        more += [repeats] if repeats != 1 else []
        crop = _crop(row)
        more += [list(crop)] if crop is not None else []
        content: list[object] = [project, author, row.answer, chosen, over, *more]
        return ImagePicked(
            id=_id_of(content),
            project=project,
            author=author,
            picked=tuple(chosen),
            over=tuple(over),
            prompt=row.answer,
            repeats=repeats,
            crop=crop,
            comment=comment,
        )
    messages = to_messages(row, [hashes[str(image)] for image in row.images])
    said = [m.model_dump(mode="json") for m in messages]
    return SampleUploaded(
        id=_id_of([project, author, said, row.rejected, row.label, *more]),
        project=project,
        author=author,
        messages=messages,
        rejected=row.rejected,
        label=row.label,
        comment=comment,
    )


def _repeats(row: Row) -> int:
    told = row.extra.get("repeats")
    return told if isinstance(told, int) and 1 <= told <= 1000 else 1


def _crop(row: Row) -> Box | None:
    try:
        return _BOX.validate_python(row.extra.get("crop"))
    except ValidationError:
        return None


_BOX: TypeAdapter[Box] = TypeAdapter(Box)


def _id_of(content: list[object]) -> str:
    return "import_" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


class Unkept(Record):
    """What rows say that feedback does not keep, counted row by row."""

    unlearnt: int = 0
    apart: int = 0
    tagged: int = 0
    keys: dict[str, int] = Field(default={})

    def and_of(self, row: Row) -> Unkept:
        keys = dict(self.keys)
        for key in formats.unread_keys(row):
            if key in keys or len(keys) < _MOST_KEYS:
                keys[key] = keys.get(key, 0) + 1
        return Unkept(
            unlearnt=self.unlearnt + sum(not turn.learn for turn in row.turns),
            apart=self.apart + (row.part != "new"),
            tagged=self.tagged + formats.is_tagged_text(row),
            keys=keys,
        )

    def sentences(self) -> Iterator[str]:
        yield from formats.notes(self.keys, self.tagged)
        if self.unlearnt:
            yield (
                f"{self.unlearnt} answers within conversations are not to be learnt (weight 0 or loss false). Of what "
                "is fed back the last answer alone is learnt, so they are not; what is exported of it does not say so."
            )
        if self.apart:
            yield (
                f"{self.apart} rows were rehearsal or replay in the snapshot that they are of; here they are samples "
                "like any other."
            )
