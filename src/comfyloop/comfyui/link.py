"""Put the node pack into a ComfyUI, and take it out again."""

from __future__ import annotations

import shutil
from pathlib import Path

from comfyloop import platforms
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
    except OSError as error:
        raise StorageError(
            f"The pack could not be taken out of {target.parent}: {error.strerror}.",
            "Check the folder's rights.",
        ) from error
    return True


def _is_pack(folder: Path) -> bool:
    return (folder / "pack.py").exists() and (folder / "spool.py").exists()


def _taken(target: Path) -> Conflict:
    return Conflict(f"{target} exists already and is not ComfyLoop's pack.", "Move it away, then try again.")


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
