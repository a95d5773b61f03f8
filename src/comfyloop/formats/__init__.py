"""Data files of other tools, read to one record.

Everything that reads rows reads them here: the import of feedback, `comfyloop train FILE`, `--from-swift`, joint runs,
snapshots and what is exported of them. So a row means the same at every door, and what cannot be used is refused by
its line and its name.

A module a form: messages, sharegpt (``conversations``), trl, alpaca and query_response say who said what, preferences
which answer was wanted, image_rows which picture. To add one, declare its `Format` in a module and name it in
`conversations.FORMATS`. files and tables find the objects in a file; rows makes records of them, writing and swift
make rows of records.
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
