"""The image starter's place in the cache: written once, under a lock, checked at every start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from comfyloop.durable import replace_whole, write_whole
from comfyloop.errors import StarterError
from comfyloop.starter.packages import disk_error, sha256

VERSION = "1.1.0"
WEIGHTS = Path(__file__).with_name("weights") / "image.safetensors"
NEEDED_BYTES = 400 << 20

Progress = Callable[[str, float], None]


def checkpoint_path(cache_dir: Path) -> Path:
    """Where the checkpoint is, or will be: its name is what ComfyUI shows."""
    return (
        Path(cache_dir).expanduser().absolute() / "image-starter" / f"comfyloop-starter-{VERSION}.safetensors"
    )


def ensure(cache_dir: Path, progress: Progress | None = None, *, verify: bool = False) -> Path:
    """The starter's checkpoint, written on the first call (seconds, 330 MB on the disk).

    Later calls check its size; `verify` hashes it. One that fails the check is written anew.

    Args:
        cache_dir: where it is kept.
        progress: called with a sentence and the fraction done, from 0 to 1.

    Raises:
        StarterError: the shipped weights are missing, or there is no room on the disk.
    """
    target = checkpoint_path(cache_dir)
    if is_intact(target, thorough=verify):
        return target
    report = progress or (lambda stage, fraction: None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            # another process may have written it while this one waited
            if not is_intact(target, thorough=verify):
                _write(target, report)
    except OSError as error:
        raise disk_error(target.parent, error) from error
    report("The image starter is ready", 1.0)
    return target


def is_intact(target: Path, *, thorough: bool = False) -> bool:
    try:
        expected = json.loads(_facts(target).read_text(encoding="utf-8"))
        if target.stat().st_size != expected["size"] or expected["made_from"] != sha256(WEIGHTS):
            return False
        return not thorough or sha256(target) == expected["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _facts(target: Path) -> Path:
    return target.with_suffix(".json")


def _write(target: Path, report: Progress) -> None:
    from .build import build  # reads and writes large arrays: only whoever needs it imports it

    if not WEIGHTS.is_file():
        raise StarterError(
            f"The image starter's own weights, {WEIGHTS.name}, are not there.",
            "Install comfyloop anew: its files are damaged.",
        )
    free = shutil.disk_usage(target.parent).free
    if free < NEEDED_BYTES:
        raise StarterError(
            f"{target.parent} has {free >> 20} MB free, and the image starter needs {NEEDED_BYTES >> 20} MB.",
            "Free some space, or set another cache directory.",
        )
    report("Writing the image starter's checkpoint", 0.1)
    facts: dict[str, Any] = {"made_from": sha256(WEIGHTS)}

    def write(draft: Path) -> None:
        build(WEIGHTS, draft)
        draft.chmod(0o644)  # the writer of safetensors makes files that only their owner can read
        facts.update(size=draft.stat().st_size, sha256=sha256(draft))

    replace_whole(target, write)
    write_whole(_facts(target), json.dumps(facts, indent=2) + "\n")
