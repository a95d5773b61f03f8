"""Assigns the pictures of a row to their places in its messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from comfyloop.formats.messages import PictureSlot, Piece, Said
from comfyloop.formats.record import IMAGE_TAG, Picture, Turn, UnusableRow, picture_of

LISTS = ("images", "image", "image_path", "image_paths")
SOURCES = ("path", "url", "image")
"""Keys of an object that names a picture."""


def take_listed(row: dict[str, Any]) -> list[Any]:
    """Remove and return the row's list of pictures, under whichever key. Raises UnusableRow if two lists differ."""
    entries = [(key, row.pop(key)) for key in LISTS if key in row]
    lists = [
        (key, value if isinstance(value, list) else [value])
        for key, value in entries
        if value not in ("", [])
    ]
    if len(lists) > 1 and any(value != lists[0][1] for _, value in lists):
        raise UnusableRow(f"it has both {lists[0][0]} and {lists[1][0]}")
    return lists[0][1] if lists else []


def picture(source: Any, folder: Path) -> Picture:
    """The picture that a value refers to. Raises UnusableRow if it refers to none."""
    if isinstance(source, dict):
        source = next((source[key] for key in SOURCES if source.get(key)), None) or source
    if not isinstance(source, str) or not source:
        raise UnusableRow(f"one of its images is a {type(source).__name__}, not a path")
    if source.startswith(("http://", "https://")):
        raise UnusableRow(f"its image {source[:80]} is a web address: download it and give its path")
    if source.startswith("file://"):
        source = unquote(source.removeprefix("file://"))
    if "\0" in source or not _is_text(source):
        shown = source.encode("unicode_escape").decode()[:100]
        raise UnusableRow(f"the path of one of its images has characters that no file's name has: {shown}")
    return picture_of(source, folder)


def _is_text(source: str) -> bool:
    try:
        source.encode()
    except UnicodeEncodeError:  # half of a character, as a cut-off emoji leaves it
        return False
    return True


def with_pictures(
    said: Sequence[Said], listed: list[Any], folder: Path
) -> tuple[tuple[Turn, ...], tuple[Picture, ...]]:
    """Fill each place with its picture: the k-th tag of the text with the k-th picture of the list.

    Without any tag the pictures come first, as in ms-swift. Without pictures a tag is text.

    Raises:
        UnusableRow: There are more of the ones than of the others, or an answer has a place for a picture.
    """
    pictures = [picture(source, folder) for source in listed]
    cut = [_cut(message) if listed else message.parts for message in said]
    own = sum(isinstance(p, PictureSlot) and p.source is not None for parts in cut for p in parts)
    places = sum(isinstance(p, PictureSlot) for parts in cut for p in parts) - own
    if listed and not places:
        first = next((n for n, message in enumerate(said) if message.role == "user"), None)
        if first is None:
            raise UnusableRow(f"its image {pictures[0].name} has no message of the user to stand in")
        cut[first] = (*(PictureSlot() for _ in listed), *cut[first])
        places = len(listed)
    for number, (message, parts) in enumerate(zip(said, cut, strict=True), start=1):
        if message.role == "assistant" and any(isinstance(part, PictureSlot) for part in parts):
            what = "its answer" if number == len(said) else f"message {number}, an answer,"
            raise UnusableRow(f"{what} has an {IMAGE_TAG} tag, and a model cannot write a picture")
    _check_count(places, pictures, cut)
    waiting = iter(pictures)
    images: list[Picture] = []
    turns = []
    for message, parts in zip(said, cut, strict=True):
        for part in parts:
            if isinstance(part, PictureSlot):
                images.append(next(waiting) if part.source is None else picture(part.source, folder))
        content = _plain([None if isinstance(part, PictureSlot) else part for part in parts])
        turns.append(Turn(message.role, content, message.learn))
    return tuple(turns), tuple(images)


def _plain(parts: Sequence[str | None]) -> str | tuple[str | None, ...]:
    """A plain string if that is equivalent, as in most rows."""
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
        parts += [PictureSlot(), text] if index else [text]
    return tuple(parts)


def _check_count(places: int, pictures: Sequence[Picture], cut: Sequence[Sequence[Piece]]) -> None:
    if places == len(pictures):
        return
    counts = f"its text has {places} {IMAGE_TAG} tag{'s' * (places != 1)} and it names {len(pictures)} "
    counts += f"image{'s' * (len(pictures) != 1)}"
    if places < len(pictures):
        listing = ", ".join(one.name for one in pictures[places:])
        raise UnusableRow(f"{counts}: there is no {IMAGE_TAG} tag for {listing}")
    at = [
        n for n, parts in enumerate(cut, 1) for p in parts if isinstance(p, PictureSlot) and p.source is None
    ]
    listing = ", ".join(f"tag {k} (message {at[k - 1]})" for k in range(len(pictures) + 1, places + 1))
    raise UnusableRow(f"{counts}: there is no picture for {listing}")
