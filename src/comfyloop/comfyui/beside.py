"""A ComfyUI that is started beside the service, and ends with it."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfyloop import platforms
from comfyloop.comfyui.link import NAME, custom_nodes
from comfyloop.environments import clean_environ
from comfyloop.errors import InvalidInput, StorageError

ENVIRONMENTS = ("venv", ".venv", "env")
"""What a ComfyUI's own environment is called, in its folder or beside it."""
PORTABLE = ("python_embeded", "python_embedded")
"""That of the portable ComfyUI for Windows, beside its folder."""
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class ComfyUI:
    folder: Path
    python: Path


def found(path: Path, python: Path | None = None) -> ComfyUI:
    """The ComfyUI in a folder, with our pack in it.

    Args:
        python: Its Python, where it is not that of an environment in or beside the folder.

    Raises:
        InvalidInput: It cannot be started as it is.
    """
    path = path.expanduser().absolute()
    nodes = custom_nodes(path)
    if not (path / "main.py").is_file():
        raise InvalidInput(
            f"{path} is a ComfyUI's data folder; there is no main.py in it to be started.",
            "Give the folder in which ComfyUI itself is, or start ComfyUI Desktop as always.",
        )
    if not (nodes / NAME / "pack.py").is_file():
        raise InvalidInput(
            f"The node pack is not in {nodes}.", f"Put it there once: `comfyloop comfyui link {path}`."
        )
    if python is None:
        python = _python_of(path)
    elif not python.expanduser().is_file():
        raise InvalidInput(f"There is no Python {python}.", "Correct --comfyui-python.")
    return ComfyUI(path, python.expanduser().absolute())


def _python_of(path: Path) -> Path:
    for folder in (path, path.parent):
        for name in ENVIRONMENTS:
            if (candidate := platforms.python_of(folder / name)).is_file():
                return candidate
    for name in PORTABLE:
        if (candidate := path.parent / name / "python.exe").is_file():
            return candidate
    if importlib.util.find_spec("comfyui_frontend_package") is not None:  # ComfyUI's own is this one
        return Path(sys.executable)
    raise InvalidInput(
        f"No Python environment of ComfyUI is in {path} or beside it.",
        "Give it with --comfyui-python: the Python with which you start ComfyUI's main.py.",
    )


@contextlib.contextmanager
def running(
    comfyui: ComfyUI, url: str, token: str, arguments: Sequence[str], tell: Callable[[str], None]
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs meanwhile, and prints where this process does. That it has ended by itself is told; the service goes on.

    Args:
        url, token: Of the service, for a pack whose settings do not say another one.

    Raises:
        StorageError: The system does not start it.
    """
    environment = clean_environ() | {"COMFYLOOP_URL": url}
    environment.pop("PYTHONSAFEPATH", None)  # ComfyUI imports what lies beside its main.py
    if token:
        environment["COMFYLOOP_TOKEN"] = token
    command = [str(comfyui.python), "main.py", *arguments]
    tell(f"Starting ComfyUI in {comfyui.folder}.")
    try:
        process = subprocess.Popen(
            command,
            cwd=comfyui.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
            **platforms.apart(),
            **platforms.ending_with_us(),
        )
    except OSError as error:
        raise StorageError(
            f"{comfyui.python} cannot be started: {error.strerror}.", "Give another with --comfyui-python."
        ) from error
    ending = threading.Event()

    def watch() -> None:
        code = process.wait()
        if not ending.is_set():
            tell(f"ComfyUI has ended ({code}). The service goes on; Ctrl-C ends it.")

    threading.Thread(target=watch, name="comfyui watch", daemon=True).start()
    try:
        yield process
    finally:
        ending.set()
        if process.poll() is None:
            platforms.ask_to_end(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        platforms.kill_group(process.pid)
