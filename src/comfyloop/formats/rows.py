"""Converts the objects of a file to records, or to the problems of unusable ones."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyloop.errors import DataError
from comfyloop.formats.files import items, parsed
from comfyloop.formats.image_rows import take_pictures
from comfyloop.formats.messages import PictureSlot, Said, tags_in
from comfyloop.formats.pictures import take_listed, with_pictures
from comfyloop.formats.preferences import take_judged
from comfyloop.formats.query_response import QUERY, RESPONSE
from comfyloop.formats.record import IMAGE_TAG, BadRow, Item, Part, Picture, Row, Turn, UnusableRow
from comfyloop.texts import is_blank

SHOWN = 20
"""Rows that a sentence about bad ones names; more are counted."""
_UNUSABLE = (
    "videos", "video", "audios", "audio", "tools", "functions", "objects", "rejected_images", "messages_rejected",
)  # fmt: skip
_OWN = (
    "id",
    "kind",
    "slice",
    "group",
    "replay",
    "part",
    "origin",
    "author",
    "feedback",
    "comment",
    "repeats",
    "crop",
)
_TELLING = frozenset(
    {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "video", "videos", "audio"}
    | {"audios", "pixel", "pixels", "chosen", "reject", "rejected", "kto", "preferred", "preference", "tool"}
    | {"tools", "function", "functions", "loss", "weight", "weights", "mask", "bbox"}
    | {"neg", "negative", "negatives", "dispreferred", "unwanted", "worse"}
)
"""Words in the name of a key that may change what is learnt."""
_NAMING = frozenset(
    ["id", "ids", "width", "height", "size", "source", "hash", "name", "sha256", "count", "format"]
)
"""Last words that make such a key speak of it only: image_id, image_width."""


@dataclass(frozen=True)
class Rows:
    """The content of a file: usable rows, unusable ones with the reason, and notes on ignored keys."""

    good: list[Row]
    bad: list[BadRow]
    notes: tuple[str, ...]  # what a person should know of the file, as sentences


def read(path: Path, *, may_be_empty: bool = False) -> Rows:
    """All rows of a data file.

    Raises:
        NotFound: There is no such file.
        DataError: It is empty or not UTF-8.
        StorageError: It cannot be read.
    """
    good: list[Row] = []
    bad: list[BadRow] = []
    unread: Counter[str] = Counter()
    tagged = 0
    file_items = items(path)
    if not file_items and not may_be_empty:
        raise DataError(f"{path} has no rows.", "Add at least one line to train on.")
    for item in file_items:
        name = ""
        try:
            name = _name_of(item)
            row = row_of(item, path.parent)
        except UnusableRow as error:
            bad.append(BadRow(item.line, name, str(error), item.item))
            continue
        good.append(row)
        unread.update(unread_keys(row))
        tagged += is_tagged_text(row)
    return Rows(good, bad, tuple(f"{path.name}: {note}" for note in notes(unread, tagged)))


def unread_keys(row: Row) -> Iterator[str]:
    """The keys of a row that training ignores."""
    return (key for key in row.extra if key not in _OWN)


def is_tagged_text(row: Row) -> bool:
    """Whether a row has an image tag in its text but no image."""
    return not row.images and any(IMAGE_TAG in turn.text for turn in row.turns)


def read_whole(path: Path, hint: str, *, may_be_empty: bool = False) -> Rows:
    """As `read`, but every row must be usable.

    Args:
        hint: What to do about those that are none.

    Raises:
        DataError: Some rows cannot be used; each is named with file and line (the first 20 of them).
    """
    contents = read(path, may_be_empty=may_be_empty)
    if contents.bad:
        problems = [f"{path}:{bad.where}: {bad.reason}" for bad in contents.bad]
        total = len(contents.good) + len(contents.bad)
        raise DataError(f"{len(problems)} of {total} rows cannot be used:\n{listed(problems)}", hint)
    return contents


def listed(sentences: Sequence[str]) -> str:
    """A sentence a line, the first 20 of them."""
    more = [f"... and {len(sentences) - SHOWN} more"] if len(sentences) > SHOWN else []
    return "\n".join([*sentences[:SHOWN], *more])


def notes(unread: Mapping[str, int], tagged: int) -> Iterator[str]:
    """Notes about rows: ignored keys, and tags that are text."""
    if unread:
        keys = ", ".join(f"{_shown(key)} ({n})" for key, n in sorted(unread.items()))
        yield f"keys that say nothing to training, with their number of rows: {keys}."
    if tagged:
        yield (
            f"{tagged} row{'s' * (tagged != 1)} with {IMAGE_TAG} in the text and no image beside it; "
            "the tag is learnt as text."
        )


def row_of(item: Item, folder: Path) -> Row:
    """One object of a file as a record.

    Args:
        folder: What relative image paths are relative to.

    Raises:
        UnusableRow: It cannot be trained on.
    """
    row = {key: value for key, value in parsed(item).items() if value is not None}
    for key in _UNUSABLE:
        if row.pop(key, None) not in (None, "", "[]", [], {}):
            raise UnusableRow(f"it has {key}, which cannot be trained on")
    pictures = take_listed(row)
    chosen, rejected_image = take_pictures(row, folder)
    said, rejected, label = take_judged(row)
    if chosen is None:
        _check_answer(said)
    turns, images = with_pictures(said, pictures, folder)
    turns, images = _until_learnt(turns, images, judged=rejected is not None or label is not None)
    refused = _rejected(rejected, turns, bool(images)) if rejected is not None else None
    extra = _extra(row)
    for text in (refused or "", *(turn.text for turn in turns)):
        _check_text(text)
    return Row(
        line=item.line,
        id=_name_of(item),
        turns=turns,
        images=images,
        rejected=refused,
        label=label,
        part=part_of(extra),
        item=item.item,
        extra=extra,
        chosen_image=chosen,
        rejected_image=rejected_image,
    )


def part_of(row: Mapping[str, Any]) -> Part:
    """The purpose of a row in a snapshot."""
    if row.get("replay") is True:
        return "replay"
    return "rehearsal" if row.get("part") == "rehearsal" else "new"


def _name_of(item: Item) -> str:
    """The row's own id, or a hash of its text."""
    id = parsed(item).get("id")
    if isinstance(id, str | int) and id != "" and len(str(id)) <= 200:
        return _shown(str(id))
    return hashlib.sha256(item.text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


# --- answers ------------------------------------------------------------------------------------------------


def _check_answer(said: Sequence[Said]) -> None:
    last = said[-1]
    if last.role != "assistant":
        raise UnusableRow(
            f"its last message is the {last.role}'s, so there is no answer to learn, and no picture under 'chosen'"
        )
    if not any(message.role == "user" for message in said):
        raise UnusableRow("it has no message of the user, so its answer answers nothing")
    if is_blank(last.text):
        raise UnusableRow("its answer is empty")


def _rejected(said: Said, turns: Sequence[Turn], has_images: bool) -> str:
    if any(isinstance(part, PictureSlot) for part in said.parts) or (has_images and tags_in(said)):
        raise UnusableRow(f"its rejected answer has an {IMAGE_TAG} tag, and a model cannot write a picture")
    if is_blank(said.text):
        raise UnusableRow("its rejected answer is empty, so there is nothing to compare its answer with")
    if said.text.strip() == turns[-1].text.strip():
        raise UnusableRow("its rejected answer is the same as its answer")
    return said.text


def _until_learnt(
    turns: tuple[Turn, ...], images: tuple[Picture, ...], judged: bool
) -> tuple[tuple[Turn, ...], tuple[Picture, ...]]:
    """The conversation up to the last answer that is to be learnt: what follows it teaches nothing."""
    if turns[-1].role != "assistant" or turns[-1].learn:
        return turns, images
    end = max((n for n, turn in enumerate(turns, 1) if turn.role == "assistant" and turn.learn), default=0)
    if not end or judged:
        raise UnusableRow("none of its answers is to be learnt (weight 0 or loss false)")
    learnt_turns = turns[:end]
    return learnt_turns, images[: sum(turn.pictures for turn in learnt_turns)]


def _check_text(text: str) -> None:
    if "\0" in text:
        raise UnusableRow("its text has a NUL character (\\u0000), which no file or database keeps")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UnusableRow(f"its text has half a character ({half}), as a cut-off emoji leaves it") from None


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


# --- the rest -----------------------------------------------------------------------------------------------


def _extra(row: dict[str, Any]) -> dict[str, Any]:
    """The remaining keys of a row. Raises UnusableRow for a key that may be relevant to training."""
    for key, value in row.items():
        if value in (None, "", [], {}) or key in _OWN or key in QUERY or key in RESPONSE:
            continue
        if (key in ("weight", "loss") and value in (1, True)) or key == "negative_prompt":
            continue
        words = re.split(r"[^a-z0-9]+", key.lower())
        if _TELLING.intersection(words) and words[-1] not in _NAMING:
            raise UnusableRow(f"it has the key {_shown(key)}, whose meaning would be lost")
    return row
