"""What a folder of files is, found by looking; and what would become of it, shown before it is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

from comfyloop.errors import InvalidInput
from comfyloop.sources import (
    captions,
    comfyui_outputs,
    langfuse,
    open_webui,
    rows,
    stored_completions,
    webdataset,
)
from comfyloop.sources.mapping import RowMapping
from comfyloop.sources.source import DataSource, SourceItem, SourceOptions
from comfyloop.sources.tree import Tree

SOURCES: Mapping[str, DataSource] = {
    source.name: source
    for source in (
        open_webui.SOURCE,
        langfuse.SOURCE,
        stored_completions.SOURCE,
        webdataset.SOURCE,
        comfyui_outputs.SOURCE,
        captions.SOURCE,
        rows.SOURCE,
    )
}
"""In the order in which a folder is asked whether it is one."""
_FIRST = 8
"""Objects by which columns are told."""


@dataclass(frozen=True)
class Looked:
    """A source that is ready to be read."""

    source: DataSource
    reading: RowMapping
    objects: Iterator[SourceItem]


def look(tree: Tree, options: SourceOptions, named: str = "") -> Looked:
    """What a folder is, and how its objects become rows.

    Args:
        named: What the person says that it is; empty: it is found by looking.

    Raises:
        InvalidInput: It is nothing that is known, or a mapping is none.
        DataError: Its first file cannot be read.
    """
    if named and named not in SOURCES:
        raise InvalidInput(f"There is no format {named!r}.", f"It is one of {', '.join(SOURCES)}.")
    source = SOURCES[named] if named else next((s for s in SOURCES.values() if s.fits(tree)), None)
    if source is None:
        kinds = sorted({name.rpartition(".")[2].lower()[:12] for name in tree.files})[:8]
        raise InvalidInput(
            f"It is not known what this data is: {len(tree.files)} files ({', '.join(kinds)}).",
            f"Name its format: one of {', '.join(SOURCES)}.",
        )
    reading = RowMapping(options, tree.root)
    objects = source.read(tree, options)
    first = list(islice(objects, _FIRST))
    reading.decide(first)
    return Looked(source, reading, chain(first, objects))
