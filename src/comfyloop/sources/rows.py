"""Files of rows: JSON lines, JSON, CSV, Parquet, in any form that `comfyloop.formats` knows or a map says."""

from __future__ import annotations

from collections.abc import Iterator

from comfyloop import formats
from comfyloop.sources.source import Found, Options, Source
from comfyloop.sources.tree import Tree, encoding_of


def read(tree: Tree, options: Options) -> Iterator[Found]:
    for name in tree.rows:
        path = tree.path(name)
        for item in formats.each(path, options.encoding or encoding_of(path)):
            yield Found(item, name, path.parent)


SOURCE = Source(
    "rows",
    "rows of JSON lines, JSON, CSV or Parquet: ms-swift, OpenAI, ShareGPT, LLaVA, Alpaca, TRL, or columns by a map",
    lambda tree: bool(tree.rows),
    read,
)
