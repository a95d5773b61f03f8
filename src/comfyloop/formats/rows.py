"""From the objects of a file to records, and to what is wrong with those that make none."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from comfyloop.errors import DataError
from comfyloop.formats.conversations import QUERY, RESPONSE, Piece, Place, Said, messages, tags_in
from comfyloop.formats.files import items, parsed
from comfyloop.formats.preferences import take_judged
from comfyloop.formats.record import (
    IMAGE_TAG,
    BadRow,
    Item,
    Part,
    Picture,
    Row,
    Turn,
    UnusableRow,
    picture_of,
)

_IMAGES = ("images", "image", "image_path", "image_paths")
_UNUSABLE = (
    "videos", "video", "audios", "audio", "tools", "functions", "objects", "rejected_images", "messages_rejected",
)  # fmt: skip
_OWN = ("id", "kind", "slice", "group", "replay", "part", "origin", "author", "feedback", "picked", "over")
_TELLING = frozenset(
    {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "video", "videos", "audio"}
    | {"audios", "pixel", "pixels", "chosen", "reject", "rejected", "kto", "preferred", "preference", "tool"}
    | {"tools", "function", "functions", "loss", "weight", "weights", "mask", "bbox"}
)
"""Words in the name of a key that may change what is learnt."""
_NAMING = frozenset(
    ["id", "ids", "width", "height", "size", "source", "hash", "name", "sha256", "count", "format"]
)
"""Last words that make such a key speak of it only: image_id, image_width."""


@dataclass(frozen=True)
class Rows:
    """What a file holds: the rows that can be used, the others with the reason, and which keys said nothing."""

    good: list[Row]
    bad: list[BadRow]
    notes: tuple[str, ...]  # what a person should know of the file, as sentences


def read(path: Path, *, answers: bool = True, may_be_empty: bool = False) -> Rows:
    """All rows of a data file.

    Args:
        answers: Whether each row must end with an answer; rows of pictures may end with a prompt.

    Raises:
        NotFound: There is no such file.
        DataError: It is empty or not UTF-8.
        StorageError: It cannot be read.
    """
    good: list[Row] = []
    bad: list[BadRow] = []
    unread: Counter[str] = Counter()
    tagged = 0
    found = items(path)
    if not found and not may_be_empty:
        raise DataError(f"{path} has no rows.", "Add at least one line to train on.")
    for item in found:
        name = ""
        try:
            name = _name_of(item)
            row = row_of(item, path.parent, answers=answers)
        except UnusableRow as error:
            bad.append(BadRow(item.line, name, str(error), item.item))
            continue
        good.append(row)
        unread.update(key for key in row.extra if key not in _OWN)
        tagged += not row.images and any(IMAGE_TAG in turn.text for turn in row.turns)
    return Rows(good, bad, tuple(_notes(path, unread, tagged)))


def _notes(path: Path, unread: Counter[str], tagged: int) -> Iterator[str]:
    if unread:
        keys = ", ".join(f"{_shown(key)} ({n})" for key, n in sorted(unread.items()))
        yield f"{path.name}: keys that say nothing to training, with their number of rows: {keys}."
    if tagged:
        yield (
            f"{path.name}: {tagged} row{'s' * (tagged != 1)} with {IMAGE_TAG} in the text and no image beside it; "
            "the tag is learnt as text."
        )


def row_of(item: Item, folder: Path, *, answers: bool = True) -> Row:
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
    listed = _listed(row)
    said, rejected, label = take_judged(row)
    if answers:
        _check_answer(said)
    turns, images = _with_pictures(said, listed, folder)
    turns, images = _until_learnt(turns, images, judged=rejected is not None or label is not None)
    refused = _rejected(rejected, turns, bool(images)) if rejected is not None else None
    extra = _extra(row)
    for text in (refused or "", *(turn.text for turn in turns), *map(str, images)):
        _check_text(text)
    return Row(item.line, _name_of(item), turns, images, refused, label, _part(extra), item.item, extra)


def _part(extra: Mapping[str, Any]) -> Part:
    if extra.get("replay") is True:
        return "replay"
    return "rehearsal" if extra.get("part") == "rehearsal" else "new"


def _name_of(item: Item) -> str:
    """The row's own id, or one made of its text."""
    given = parsed(item).get("id")
    if isinstance(given, str | int) and given != "" and len(str(given)) <= 200:
        return _shown(str(given))
    return hashlib.sha256(item.text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def turns_of(listed: Any) -> tuple[Turn, ...]:
    """Messages as a snapshot writes them: texts with tags, or parts. Raises UnusableRow."""
    return tuple(
        Turn(said.role, _plain([None if isinstance(part, Place) else part for part in _cut(said)]))
        for said in messages(listed, "messages")
    )


def to_json(row: Row, images: Sequence[str]) -> dict[str, Any]:
    """A row as ms-swift writes it, and as `read` reads it to the same record again.

    A text that holds an image tag itself is written in parts, in which text is text; ms-swift has no such form.
    """
    written: dict[str, Any] = {"messages": [_message(turn) for turn in row.turns]}
    if images:
        written["images"] = list(images)
    if row.rejected is not None:
        written["rejected_response"] = rejected_as_json(row.rejected)
    if row.label is not None:
        written["label"] = row.label
    return written


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": content_as_json(turn.parts)}
    return message if turn.learn else message | {"loss": False}


def content_as_json(parts: Sequence[str | None]) -> str | list[dict[str, str]]:
    if not any(part is not None and IMAGE_TAG in part for part in parts):
        return "".join(IMAGE_TAG if part is None else part for part in parts)
    return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]


def rejected_as_json(text: str) -> str | list[dict[str, Any]]:
    content = content_as_json([text])
    return content if isinstance(content, str) else [{"role": "assistant", "content": content}]


# --- answers ------------------------------------------------------------------------------------------------


def _check_answer(said: Sequence[Said]) -> None:
    last = said[-1]
    if last.role != "assistant":
        raise UnusableRow(f"its last message is the {last.role}'s, so there is no answer to learn")
    if not any(message.role == "user" for message in said):
        raise UnusableRow("it has no message of the user, so its answer answers nothing")
    if _is_blank(last.text):
        raise UnusableRow("its answer is empty")


def _rejected(said: Said, turns: Sequence[Turn], has_images: bool) -> str:
    if any(isinstance(part, Place) for part in said.parts) or (has_images and tags_in(said)):
        raise UnusableRow(f"its rejected answer has an {IMAGE_TAG} tag, and a model cannot write a picture")
    if _is_blank(said.text):
        raise UnusableRow("its rejected answer is empty, so there is nothing to compare its answer with")
    if said.text.strip() == turns[-1].text.strip():
        raise UnusableRow("its rejected answer is the same as its answer")
    return said.text


def _is_blank(text: str) -> bool:
    """Nothing that can be seen: white space, zero-width characters, byte order marks."""
    return all(char.isspace() or unicodedata.category(char) in ("Cf", "Cc") for char in text)


def _until_learnt(
    turns: tuple[Turn, ...], images: tuple[Picture, ...], judged: bool
) -> tuple[tuple[Turn, ...], tuple[Picture, ...]]:
    """The conversation up to the last answer that is to be learnt: what follows it teaches nothing."""
    if turns[-1].role != "assistant" or turns[-1].learn:
        return turns, images
    end = max((n for n, turn in enumerate(turns, 1) if turn.role == "assistant" and turn.learn), default=0)
    if not end or judged:
        raise UnusableRow("none of its answers is to be learnt (weight 0 or loss false)")
    kept = turns[:end]
    return kept, images[: sum(turn.pictures for turn in kept)]


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


# --- pictures -----------------------------------------------------------------------------------------------


def _listed(row: dict[str, Any]) -> list[Any]:
    """The row's list of pictures, under whichever key."""
    found = [(key, row.pop(key)) for key in _IMAGES if key in row]
    told = [
        (key, value if isinstance(value, list) else [value]) for key, value in found if value not in ("", [])
    ]
    if len(told) > 1 and any(value != told[0][1] for _, value in told):
        raise UnusableRow(f"it has both {told[0][0]} and {told[1][0]}")
    return told[0][1] if told else []


def _with_pictures(
    said: Sequence[Said], listed: list[Any], folder: Path
) -> tuple[tuple[Turn, ...], tuple[Picture, ...]]:
    """Each place with its picture: the k-th tag of the text with the k-th of the list.

    Where no tag stands at all the pictures come first, as ms-swift puts them. Without pictures a tag is text.
    """
    pictures = [_picture(source, folder) for source in listed]
    cut = [_cut(message) if listed else message.parts for message in said]
    own = sum(isinstance(p, Place) and p.source is not None for parts in cut for p in parts)
    places = sum(isinstance(p, Place) for parts in cut for p in parts) - own
    if listed and not places:
        first = next((n for n, message in enumerate(said) if message.role == "user"), None)
        if first is None:
            raise UnusableRow(f"its image {_name(pictures[0])} has no message of the user to stand in")
        cut[first] = (*(Place() for _ in listed), *cut[first])
        places = len(listed)
    for number, (message, parts) in enumerate(zip(said, cut, strict=True), start=1):
        if message.role == "assistant" and any(isinstance(part, Place) for part in parts):
            what = "its answer" if number == len(said) else f"message {number}, an answer,"
            raise UnusableRow(f"{what} has an {IMAGE_TAG} tag, and a model cannot write a picture")
    _check_count(places, pictures, cut)
    waiting = iter(pictures)
    images: list[Picture] = []
    turns = []
    for message, parts in zip(said, cut, strict=True):
        for part in parts:
            if isinstance(part, Place):
                images.append(next(waiting) if part.source is None else _picture(part.source, folder))
        content = _plain([None if isinstance(part, Place) else part for part in parts])
        turns.append(Turn(message.role, content, message.learn))
    return tuple(turns), tuple(images)


def _plain(parts: Sequence[str | None]) -> str | tuple[str | None, ...]:
    """A plain string where it says the same: the form in which most rows are written."""
    joined = _joined(parts)
    text = "".join(IMAGE_TAG if part is None else part for part in joined)
    return text if Turn("", text).parts == joined else joined


def _joined(parts: Sequence[str | None]) -> tuple[str | None, ...]:
    joined: list[str | None] = []
    for part in parts:
        if part is not None and joined and joined[-1] is not None:
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined)


def _cut(message: Said) -> tuple[Piece, ...]:
    """A plain string cut at its image tags."""
    if not message.tagged:
        return message.parts
    parts: list[Piece] = []
    for index, text in enumerate(message.text.split(IMAGE_TAG)):
        parts += [Place(), text] if index else [text]
    return tuple(parts)


def _check_count(places: int, pictures: Sequence[Picture], cut: Sequence[Sequence[Piece]]) -> None:
    if places == len(pictures):
        return
    named = f"its text has {places} {IMAGE_TAG} tag{'s' * (places != 1)} and it names {len(pictures)} "
    named += f"image{'s' * (len(pictures) != 1)}"
    if places < len(pictures):
        left = ", ".join(map(_name, pictures[places:]))
        raise UnusableRow(f"{named}: there is no {IMAGE_TAG} tag for {left}")
    at = [n for n, parts in enumerate(cut, 1) for p in parts if isinstance(p, Place) and p.source is None]
    left = ", ".join(f"tag {k} (message {at[k - 1]})" for k in range(len(pictures) + 1, places + 1))
    raise UnusableRow(f"{named}: there is no picture for {left}")


def _picture(source: Any, folder: Path) -> Picture:
    if isinstance(source, dict):
        source = next((source[key] for key in ("path", "url", "image") if source.get(key)), None) or source
    if not isinstance(source, str) or not source:
        raise UnusableRow(f"one of its images is a {type(source).__name__}, not a path")
    if source.startswith(("http://", "https://")):
        raise UnusableRow(f"its image {source[:80]} is a web address: download it and give its path")
    if source.startswith("file://"):
        source = unquote(source.removeprefix("file://"))
    _check_text(source)
    return picture_of(source, folder)


def _name(picture: Picture) -> str:
    return picture.name


# --- the rest -----------------------------------------------------------------------------------------------


def _extra(row: dict[str, Any]) -> dict[str, Any]:
    """What is left of a row. Raises UnusableRow for a key that may mean something to training."""
    for key, value in row.items():
        if value in (None, "", [], {}) or key in _OWN or key in QUERY or key in RESPONSE:
            continue
        if key in ("weight", "loss") and value in (1, True):
            continue
        words = re.split(r"[^a-z0-9]+", key.lower())
        if _TELLING.intersection(words) and words[-1] not in _NAMING:
            raise UnusableRow(f"it has the key {_shown(key)}, whose meaning would be lost")
    return row
