"""Reads data files of other tools into one record type.

All readers of rows use this package: the import of feedback, `comfyloop train FILE`, `--from-swift`, joint runs,
snapshots and their exports. A row therefore has the same meaning everywhere, and unusable rows are refused with
their line and name.

One module per format: messages, sharegpt (``conversations``), trl, alpaca and query_response read conversations,
preferences which answer was wanted, image_rows pictures. To add one, declare its `Format` in a module and list it
in `conversations.FORMATS`. files and tables find the objects in a file; rows converts them to records; writing and
swift convert records to rows.
"""

from comfyloop.formats.files import each, items, objects
from comfyloop.formats.image_rows import paths_in
from comfyloop.formats.record import (
    IMAGE_TAG,
    BadRow,
    Inline,
    Item,
    Part,
    Picture,
    Row,
    Turn,
    UnusableRow,
    picture_of,
)
from comfyloop.formats.rows import (
    Rows,
    is_tagged_text,
    listed,
    notes,
    part_of,
    read,
    read_whole,
    row_of,
    unread_keys,
)
from comfyloop.formats.swift import of_swift, quoted_tag, to_swift
from comfyloop.formats.writing import to_json

__all__ = [
    "IMAGE_TAG",
    "BadRow",
    "Inline",
    "Item",
    "Part",
    "Picture",
    "Row",
    "Rows",
    "Turn",
    "UnusableRow",
    "each",
    "is_tagged_text",
    "items",
    "listed",
    "notes",
    "objects",
    "of_swift",
    "part_of",
    "paths_in",
    "picture_of",
    "quoted_tag",
    "read",
    "read_whole",
    "row_of",
    "to_json",
    "to_swift",
    "unread_keys",
]
