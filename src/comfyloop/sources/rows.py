"""Files of rows: JSON lines, JSON, CSV, Parquet, in any form that `comfyloop.formats` knows or a map says."""

from __future__ import annotations

from collections.abc import Iterator

from comfyloop import formats
from comfyloop.sources.source import DataSource, SourceItem, SourceOptions
from comfyloop.sources.tree import Tree, encoding_of


def read(tree: Tree, options: SourceOptions) -> Iterator[SourceItem]:
    for name in tree.rows:
        path = tree.path(name)
        for item in formats.each(path, options.encoding or encoding_of(path)):
            yield SourceItem(item, name, path.parent)


SOURCE = DataSource(
    "rows",
    "rows of JSON lines, JSON, CSV or Parquet: ms-swift, OpenAI, ShareGPT, LLaVA, Alpaca, TRL, or columns by a map",
    lambda tree: bool(tree.rows),
    read,
)
