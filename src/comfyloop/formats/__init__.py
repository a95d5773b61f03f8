"""Data files of other tools, read to one record.

Everything that reads rows reads them here: the import of feedback, `comfyloop train FILE`, `--from-swift`,
snapshots and what is exported of them. So a row means the same at every door, and what cannot be used is
refused by its line and its name.
"""

from comfyloop.formats.files import items
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
from comfyloop.formats.rows import Rows, content_as_json, read, rejected_as_json, row_of, to_json, turns_of

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
    "content_as_json",
    "items",
    "picture_of",
    "read",
    "rejected_as_json",
    "row_of",
    "to_json",
    "turns_of",
]
