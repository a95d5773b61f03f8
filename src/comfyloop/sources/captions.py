"""Folders of pictures with their words: a text beside each, kohya's ``10_name`` folders, or one file of captions.

A file of captions is ``metadata.jsonl`` or ``metadata.csv`` with a ``file_name`` column, as Hugging Face's image
folders have it; its other columns may be of any format. Where a picture has no words of its own, the name of its
kohya folder is used, as kohya's scripts do; the number before it says how often they pass its pictures in an epoch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from comfyloop import formats
from comfyloop.sources.source import DataSource, SourceItem, SourceOptions, found
from comfyloop.sources.tree import Tree, encoding_of

TEXTS = (".txt", ".caption")
LONGEST = 2**20
"""Bytes of a text beside a picture."""
MOST_REPEATS = 1000
NOT_TAKEN = "it is a picture of a kind that is not taken: save it as PNG, JPEG, WebP, GIF or BMP"
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_NAMED = ("file_name", "image_file", "image")
_KOHYA = re.compile(r"(\d{1,9})_(.+)")


def fits(tree: Tree) -> bool:
    shown = tree.pictures or tree.other_pictures
    return bool(shown) and (
        bool(_metadata(tree)) or not tree.rows or any(beside(tree, name) for name in shown)
    )


def read(tree: Tree, options: SourceOptions) -> Iterator[SourceItem]:
    listed = _metadata(tree)
    for name in listed:
        yield from _of_metadata(tree, name, options)
    below = tuple(str(PurePosixPath(name).parent) for name in listed)
    for name in (*tree.pictures, *sorted(tree.other_pictures)):
        folder = PurePosixPath(name).parent
        if any(root in (".", str(folder)) or folder.is_relative_to(root) for root in below):
            continue
        yield of_picture(tree, name, options)


def _metadata(tree: Tree) -> tuple[str, ...]:
    return tuple(name for name in tree.rows if PurePosixPath(name).name.lower() in _METADATA)


def _of_metadata(tree: Tree, name: str, options: SourceOptions) -> Iterator[SourceItem]:
    path = tree.path(name)
    for item in formats.each(path, options.encoding or encoding_of(path)):
        if item.value is not None:
            key = next((key for key in _NAMED if isinstance(item.value.get(key), str)), None)
            if key is not None and key != "image":
                item.value["image"] = item.value.pop(key)
        yield SourceItem(item, name, path.parent)


def beside(tree: Tree, picture: str) -> str | None:
    """The text beside a picture: of the same name, with another ending, which cameras and Windows write in capitals."""
    near = tree.beside(picture)
    return next((near[ending] for ending in (*TEXTS, ".json") if ending in near), None)


def of_picture(tree: Tree, name: str, options: SourceOptions) -> SourceItem:
    path = tree.path(name)
    if name in tree.other_pictures:
        return found(None, name, path.parent, NOT_TAKEN)
    text = beside(tree, name)
    kohya = _KOHYA.fullmatch(path.parent.name)
    repeats = {"repeats": min(int(kohya[1]), MOST_REPEATS)} if kohya and int(kohya[1]) > 1 else {}
    if text is not None:
        value, problem = words_of(tree.path(text), options)
        if problem:
            return found(None, text, path.parent, problem)
        return found({"image": path.name, **value, **repeats}, text, path.parent)
    if kohya:
        return found(
            {"image": path.name, "caption": kohya[2].replace("_", " "), **repeats}, name, path.parent
        )
    return found(
        None, name, path.parent, f"there is no text beside it ({path.stem}.txt), so nothing is said of it"
    )


def words_of(path: Path, options: SourceOptions) -> tuple[dict[str, Any], str]:
    """What a file beside a picture says, or what is wrong with it."""
    data = path.read_bytes()[: LONGEST + 1]
    if len(data) > LONGEST:
        return {}, f"it is longer than {LONGEST} bytes"
    encoding = options.encoding or encoding_of(path) or "utf-8-sig"
    try:
        text = data.decode(encoding).strip("\ufeff \t\r\n")
        text = text.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads a file of text
    except (UnicodeDecodeError, LookupError) as error:
        line = data[: getattr(error, "start", 0)].count(b"\n") + 1
        return (
            {},
            f"line {line} is not {encoding.upper().removesuffix('-SIG')} text: give its encoding, such as gb18030",
        )
    if path.suffix.lower() != ".json":
        return ({"caption": text}, "") if text else ({}, "it is empty")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}, "it is not JSON"
    if isinstance(value, str):
        return {"caption": value}, ""
    return (
        (value, "")
        if isinstance(value, dict)
        else ({}, f"it is a JSON {type(value).__name__}, not an object")
    )


SOURCE = DataSource(
    "captions",
    "pictures with a text beside each (.txt, .caption, .json), in kohya's 10_name folders, or in metadata.jsonl",
    fits,
    read,
)
