"""WebDataset: tar shards in which the files of a sample share a name up to its first dot."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from comfyloop.sources.captions import words_of
from comfyloop.sources.source import DataSource, SourceItem, SourceOptions, found
from comfyloop.sources.tree import PICTURES, Tree

_TEXTS = (".txt", ".caption", ".text")


def fits(tree: Tree) -> bool:
    """Samples of several files each, below what was a tar."""
    if not tree.files or not all(_in_tar(name) for name in tree.files):
        return False
    some = tree.files[:200]
    samples = {_key(name) for name in some}
    return len(samples) < len(some) and any(PurePosixPath(name).suffix.lower() in PICTURES for name in some)


def _in_tar(name: str) -> bool:
    return any(part.lower().endswith((".tar", ".tgz", ".tar.gz")) for part in PurePosixPath(name).parts[:-1])


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def read(tree: Tree, options: SourceOptions) -> Iterator[SourceItem]:
    for key, names in groupby(sorted(tree.files, key=lambda name: (_key(name), name)), key=_key):
        for one, parts in _samples(key, list(names)):
            yield _sample(tree, one, parts, options)


def _samples(key: str, names: list[str]) -> list[tuple[str, list[str]]]:
    """The samples of files that are called alike up to the first dot: one, unless those up to the last dot are
    each a picture and its words, as of `22.05.png`, `22.05.txt`, `22.06.png`, `22.06.txt`."""
    stems = {
        stem: list(parts) for stem, parts in groupby(sorted(names), key=lambda name: name.rpartition(".")[0])
    }
    whole = all(
        suffixes.intersection(PICTURES) and suffixes.intersection((*_TEXTS, ".json"))
        for suffixes in ({PurePosixPath(name).suffix.lower() for name in parts} for parts in stems.values())
    )
    return list(stems.items()) if whole else [(key, names)]


def _sample(tree: Tree, key: str, names: list[str], options: SourceOptions) -> SourceItem:
    folder = tree.path(key).parent
    pictures = [PurePosixPath(name).name for name in names if PurePosixPath(name).suffix.lower() in PICTURES]
    value: dict[str, Any] = {}
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in (*_TEXTS, ".json"):
            said, problem = words_of(tree.path(name), options)
            if problem:
                return found(None, name, folder, problem)
            value = said | value if suffix == ".json" else value | said
    if not value:
        return found(
            None, key, folder, "it has neither a .txt nor a .json, so nothing is said of its picture"
        )
    if pictures:
        value = {key: inner for key, inner in value.items() if key not in ("image", "images", "file_name")}
        value["image"] = pictures[0] if len(pictures) == 1 else pictures
    return found(value, key, folder)


SOURCE = DataSource(
    "webdataset", "WebDataset shards: tars of samples, the files of each called alike", fits, read
)
