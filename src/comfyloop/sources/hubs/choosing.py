"""Which files of a hub's repository are its data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from comfyloop.errors import DataError
from comfyloop.sources.archives import is_archive
from comfyloop.sources.hubs.hub import HubFile
from comfyloop.sources.tree import PICTURES, ROWS

_BESIDE = (".txt", ".caption")
_NOT_DATA = re.compile(
    r"(^|/)(\.[^/]*|readme[^/]*|licen[sc]e[^/]*|dataset_infos?\.json|dataset_dict\.json|state\.json)$", re.I
)
_TRAIN = re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.I)
_OTHER = re.compile(r"(?<![a-z])(test|testing|valid|validation|val|dev|eval)(?![a-z])", re.I)


def chosen(files: Sequence[HubFile], under: str) -> tuple[list[HubFile], tuple[str, ...]]:
    """The data below a folder, in the order of names; of a set with a training part that alone.

    Raises:
        DataError: There is none that can be read.
    """
    folder = under.strip("/")
    data = [
        file
        for file in sorted(files)
        if (not folder or file.path == folder or file.path.startswith(f"{folder}/"))
        and not _NOT_DATA.search(file.path)
        and (is_archive(file.path) or PurePosixPath(file.path).suffix.lower() in (*ROWS, *PICTURES, *_BESIDE))
    ]
    if not data:
        kinds = sorted({PurePosixPath(file.path).suffix for file in files if PurePosixPath(file.path).suffix})
        below = f" below {folder}" if folder else ""
        raise DataError(
            f"There is no data that can be read{below}: {len(files)} files ({', '.join(kinds[:8])}).",
            "Files of rows, pictures, texts beside them and archives are read.",
        )
    notes: tuple[str, ...] = ()
    if not folder and any(_TRAIN.search(file.path) for file in data):
        left = [file for file in data if _OTHER.search(file.path) and not _TRAIN.search(file.path)]
        if left:
            data = [file for file in data if file not in left]
            notes = (
                f"{len(left)} files of its test and validation parts are left out, such as {left[0].path}.",
            )
    return data, notes
