"""The service started at log-in."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from comfyloop import platforms
from comfyloop.cli.base import Json, app, err, put, settings_of
from comfyloop.comfyui import beside, starts_by_itself
from comfyloop.errors import Conflict, InvalidInput, StorageError
from comfyloop.settings import FILE

autostart_app = typer.Typer(
    help="Start the service whenever you log in: a systemd user unit, a launchd agent, a Windows task.",
    no_args_is_help=True,
)
app.add_typer(autostart_app, name="autostart")

NAME = "comfyloop"


@autostart_app.command("on")
def autostart_on(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where data is kept.")] = None,
    with_comfyui: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Also start the ComfyUI in this folder.")
    ] = None,
    comfyui_python: Annotated[
        Path | None,
        typer.Option(metavar="PYTHON", help="That of ComfyUI; default: as `comfyloop up` finds it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start the service now and at each log-in; doing it again changes how."""
    from comfyloop.service import is_served

    settings = settings_of(home=home, port=port)
    if not starts_by_itself():
        raise InvalidInput(
            "ComfyLoop is not installed in this Python: it is found by PYTHONPATH, which is not set at log-in.",
            f"Install it: {sys.executable} -m pip install PATH_OF_COMFYLOOP.",
        )
    if not platforms.login.is_on(NAME) and is_served(settings.home):
        raise Conflict(
            f"A service runs on {settings.home}, and a second one cannot.", "Stop it, then try again."
        )
    python = platforms.login.without_window(sys.executable)
    command = [python, "-m", "comfyloop", "up", "--home", str(settings.home.absolute())]
    if port is not None:
        command += ["--port", str(port)]
    if with_comfyui is not None:
        comfyui = beside.found(with_comfyui, comfyui_python)
        command += ["--with-comfyui", str(comfyui.folder), "--comfyui-python", str(comfyui.python)]
    elif comfyui_python is not None:
        raise InvalidInput("ComfyUI's Python is given, and no ComfyUI.", "Add --with-comfyui PATH.")
    log = settings.home.absolute() / "service.log"
    if not platforms.login.keeps_log():
        command += ["--log", str(log)]
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    login = platforms.login.LogIn(NAME, "ComfyLoop: ComfyUI learns from you", command, log.parent, log)
    try:
        where = platforms.login.switch_on(login)
    except OSError as error:
        raise _refused(error) from error
    if variables := sorted(_set_here()):
        err.print(
            f"{', '.join(variables)}: set in this terminal, and not at log-in. Put what you want of it into "
            f"{settings.home / FILE}.",
            highlight=False,
            soft_wrap=True,
        )
    put(
        {"on": True, "where": where, "command": command},
        as_json,
        f"ComfyLoop starts now, and whenever you log in ({where}). `comfyloop autostart off` ends both.",
    )


@autostart_app.command("off")
def autostart_off(as_json: Json = False) -> None:
    """Start the service at log-in no more, and end the one that was started so; a training run goes on."""
    try:
        removed = platforms.login.switch_off(NAME)
    except OSError as error:
        raise _refused(error) from error
    put({"on": False, "removed": removed}, as_json, "It is off." if removed else "It was not on.")


@autostart_app.command("status")
def autostart_status(as_json: Json = False) -> None:
    """Say whether the service starts at log-in. Exit code 1 when it does not."""
    on = platforms.login.is_on(NAME)
    put({"on": on}, as_json, "on: it starts when you log in." if on else "off")
    if not on:
        raise typer.Exit(1)


def _set_here() -> list[str]:
    return [name for name in os.environ if name.startswith("COMFYLOOP_") and name != "COMFYLOOP_HOME"]


def _refused(error: OSError) -> StorageError:
    return StorageError(
        f"{error.strerror}.",
        "Start it by hand with `comfyloop up`, or have your desktop start that at log-in.",
    )
