"""Put the node pack into a ComfyUI checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

from comfyloop.errors import Conflict, InvalidInput, NotFound, StorageError

NAME = "comfyloop"
"""The pack's folder in `custom_nodes`."""


def pack_folder() -> Path:
    """Where the pack is: in an installed package beside this module, else at the root of the checkout."""
    here = Path(__file__).parent
    for folder in (here / "pack", here.parents[2] / "comfyui"):
        if (folder / "pack.py").exists():
            return folder
    raise NotFound(
        "The node pack is not part of this installation.", "Install ComfyLoop again, or from its repository."
    )


def custom_nodes(path: Path) -> Path:
    """The folder of node packs of the ComfyUI at `path`; raises InvalidInput when there is no ComfyUI."""
    if not (path / "main.py").exists() or not (path / "comfy").is_dir():
        raise InvalidInput(
            f"{path} is not a ComfyUI folder: it has no main.py and comfy/ in it.",
            "Give the folder in which ComfyUI was installed.",
        )
    return path / "custom_nodes"


def link(path: Path, copy: bool = False) -> Path:
    """Put the pack into the ComfyUI at `path`; returns where it is now. Doing it twice changes nothing.

    Args:
        path: A ComfyUI folder.
        copy: Copy instead of a symbolic link (where links are not allowed, or ours will move). An earlier
            copy is replaced.

    Raises:
        InvalidInput: There is no ComfyUI at `path`.
        Conflict: Something that is not our pack is in its place.
        StorageError: The file system refused.
    """
    source, target = pack_folder(), custom_nodes(path) / NAME
    if target.is_symlink():
        if target.resolve() == source.resolve() and not copy:
            return target
        if target.exists() and not _is_pack(target):
            raise _taken(target)
    elif target.exists() and not _is_pack(target):
        raise _taken(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f"{NAME}.new.disabled")  # ComfyUI does not load what ends so
        _remove(new)
        if copy:
            shutil.copytree(source, new, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            new.symlink_to(source.resolve(), target_is_directory=True)
        _remove(target)
        new.replace(target)
    except OSError as error:
        raise StorageError(
            f"The pack could not be put into {target.parent}: {error.strerror}.",
            "Check the folder's rights, or use --copy where links are not allowed.",
        ) from error
    return target


def _is_pack(folder: Path) -> bool:
    return (folder / "pack.py").exists() and (folder / "spool.py").exists()


def _taken(target: Path) -> Conflict:
    return Conflict(f"{target} exists already and is not ComfyLoop's pack.", "Move it away, then link again.")


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
