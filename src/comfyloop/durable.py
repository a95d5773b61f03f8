"""What has been written stays: a file, and the names in a folder, pushed to the disk itself."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """fsync a file's content or a folder's entries; after a rename, sync the folder too.

    Raises:
        OSError: The disk refuses.
    """
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and its renames are journalled
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
