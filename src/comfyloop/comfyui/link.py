"""Put the node pack into a ComfyUI, and take it out again."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import comfyloop
from comfyloop import platforms
from comfyloop.durable import write_whole
from comfyloop.errors import Conflict, InvalidInput, NotFound, StorageError
from comfyloop.settings import home_folder

NAME = "comfyloop"
"""The pack's folder in `custom_nodes`."""
RECORD = "comfyloop.launch.json"
"""Beside it: which ComfyLoop the pack's *Start* starts."""


def pack_folder() -> Path:
    """Where the pack is: in an installed package beside this module, else at the root of the checkout."""
    here = Path(__file__).parent
    for folder in (here / "pack", here.parents[2] / "comfyui"):
        if (folder / "pack.py").exists():
            return folder
    raise NotFound(
        "The node pack is not part of this installation.", "Install ComfyLoop again, or from its repository."
    )


def pack_files(folder: Path) -> dict[str, Path]:
    """The files of a pack in `folder`, without what tools leave there, by their relative names."""
    names = {path: path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path
        for path, name in names.items()
        if not any(part == "__pycache__" or part.startswith(".") for part in name.parts)
    }


def custom_nodes(path: Path) -> Path:
    """The folder of node packs of the ComfyUI at `path`; raises InvalidInput when there is no ComfyUI.

    A checkout has main.py and comfy/; the data folder of ComfyUI Desktop, or of ``--base-directory``, has
    custom_nodes/ and models/.
    """
    checkout = (path / "main.py").exists() and (path / "comfy").is_dir()
    data = (path / "custom_nodes").is_dir() and (path / "models").is_dir()
    if not checkout and not data:
        raise InvalidInput(
            f"{path} is not a ComfyUI folder: it has neither main.py and comfy/ nor custom_nodes/ and models/ in it.",
            "Give the folder in which ComfyUI was installed, or its data folder.",
        )
    return path / "custom_nodes"


def link(path: Path, copy: bool = False, home: Path | None = None) -> Path:
    """Put the pack into the ComfyUI at `path`; returns where it is now. Doing it twice changes nothing.

    Args:
        path: A ComfyUI folder.
        copy: Copy instead of a symbolic link (where links are not allowed, or ours will move). An earlier
            copy is replaced.
        home: Where the service that is started from ComfyUI's sidebar keeps its data; default: where one that is
            started here does.

    Raises:
        InvalidInput: There is no ComfyUI at `path`.
        Conflict: Something that is not our pack is in its place.
        StorageError: The file system refused.
    """
    source, target = pack_folder(), custom_nodes(path) / NAME
    if target.is_symlink():
        if target.exists() and not _is_pack(target):
            raise _taken(target)
    elif target.exists() and not _is_pack(target):
        raise _taken(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target.with_name(RECORD), json.dumps(_this_one(home or home_folder()), indent=2) + "\n")
        if target.is_symlink() and target.resolve() == source.resolve() and not copy:
            return target
        new = target.with_name(f"{NAME}.new.disabled")  # ComfyUI does not load what ends so
        _remove(new)
        if copy:
            shutil.copytree(source, new, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            new.symlink_to(source.resolve(), target_is_directory=True)
        _remove(target)
        platforms.replace(new, target)
    except OSError as error:
        raise StorageError(
            f"The pack could not be put into {target.parent}: {error.strerror}.",
            "Check the folder's rights, or use --copy where links are not allowed.",
        ) from error
    return target


def unlink(path: Path) -> bool:
    """Take the pack out of the ComfyUI at `path`; False when it was not there. Settings and spool stay.

    Raises:
        InvalidInput: There is no ComfyUI at `path`.
        Conflict: Something that is not our pack is in its place.
        StorageError: The file system refused.
    """
    target = custom_nodes(path) / NAME
    if not target.is_symlink() and not target.exists():
        return False
    if target.exists() and not _is_pack(target):
        raise _taken(target)
    try:
        _remove(target)
        _remove(target.with_name(RECORD))
    except OSError as error:
        raise StorageError(
            f"The pack could not be taken out of {target.parent}: {error.strerror}.",
            "Check the folder's rights.",
        ) from error
    return True


def starts_by_itself() -> bool:
    """Whether this Python finds this ComfyLoop without being told where it is."""
    return not _told_where()


def _told_where() -> str:
    """PYTHONPATH, where this ComfyLoop is found by it."""
    package = Path(comfyloop.__file__).resolve().parents[1]
    told = [Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(map(str, told)) if package in told else ""


def _this_one(home: Path) -> dict[str, str]:
    """How this ComfyLoop is started: by which Python, and where that finds it when it is not installed there."""
    path = _told_where()
    return {"python": sys.executable, "path": path, "home": str(home.expanduser().absolute())}


def _is_pack(folder: Path) -> bool:
    return (folder / "pack.py").exists() and (folder / "spool.py").exists()


def _taken(target: Path) -> Conflict:
    return Conflict(f"{target} exists already and is not ComfyLoop's pack.", "Move it away, then try again.")


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
