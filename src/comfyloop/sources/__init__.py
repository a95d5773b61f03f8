"""Where data comes from, each kind in a file that declares it.

A kind of source looks at a folder of files and says whether it is one of its own; then it yields what is in it as
plain objects, which `mapping` brings to rows and `comfyloop.formats` reads to the one record. Nothing here knows of
feedback, the store or the service.
"""

from comfyloop.sources.archives import is_archive, unpack_all
from comfyloop.sources.looking import SOURCES, Looked, look
from comfyloop.sources.mapping import TARGETS, RowMapping, as_written, parse_map
from comfyloop.sources.source import DataSource, SourceItem, SourceOptions
from comfyloop.sources.tree import OUTSIDE, Tree, outside_name, tree_of

__all__ = [
    "OUTSIDE",
    "SOURCES",
    "TARGETS",
    "DataSource",
    "Looked",
    "RowMapping",
    "SourceItem",
    "SourceOptions",
    "Tree",
    "as_written",
    "is_archive",
    "look",
    "outside_name",
    "parse_map",
    "tree_of",
    "unpack_all",
]
