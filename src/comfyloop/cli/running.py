"""Starting a service, and looking at one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from comfyloop import __version__, platforms, tokens
from comfyloop.cli.base import (
    Json,
    Project,
    Url,
    app,
    err,
    out,
    put,
    service,
    settings_of,
)
from comfyloop.client import show
from comfyloop.client.addresses import bracketed, reached
from comfyloop.errors import InvalidInput, StorageError

LOG_BYTES = 10 * 2**20


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: `starter`, a directory or a hub id.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where data is kept.")] = None,
    project: Project = None,
    port_file: Annotated[
        Path | None, typer.Option(help="Write the port here once it is bound, for scripts.")
    ] = None,
    frontend: Annotated[
        Path | None, typer.Option(help="Serve the pages of this folder in place of ComfyLoop's own.")
    ] = None,
    with_comfyui: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Also start the ComfyUI in this folder, and end it with the service."
        ),
    ] = None,
    comfyui_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="That of ComfyUI; default: of an environment in or beside its folder.",
        ),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="Write what would be printed to the end of this file.")
    ] = None,
    comfyui_arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ARGUMENT...]", help="What ComfyUI is started with, as `-- --lowvram`."),
    ] = None,
) -> None:
    """Start the service: API, pages, engine and loop. Ctrl-C stops it; a training run goes on and is found again."""
    from comfyloop import service as assembly
    from comfyloop import web
    from comfyloop.comfyui import beside
    from comfyloop.serve.api import origin, server

    if log is not None:
        _write_into(log)
    if with_comfyui is None and (comfyui_arguments or comfyui_python):
        raise InvalidInput(
            "ComfyUI's Python and arguments are given, and no ComfyUI.", "Add --with-comfyui PATH."
        )
    comfyui = None if with_comfyui is None else beside.found(with_comfyui, comfyui_python)
    os.umask(0o077)  # what people say and show is nobody else's on this machine
    settings = settings_of(port=port, host=host, model=model, home=home, project=project)
    front = web.install if frontend is None else web.of_folder(frontend)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    # Until the server has handlers of its own, and what is below is taken apart either way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    listener = server.bind(settings.host, settings.port)
    address, bound = listener.getsockname()[:2]
    if not origin.is_loopback(address) and not settings.token:
        settings = settings.model_copy(update={"token": tokens.ensure(settings.home)})
        err.print(
            f"Others can reach this address, so a token is asked: {settings.token}\n"
            f"(kept in {settings.home / tokens.NAME}; clients send `Authorization: Bearer TOKEN`)",
            highlight=False,
            soft_wrap=True,
        )
    with assembly.running(settings) as services, contextlib.ExitStack() as stack:
        if port_file is not None:
            port_file.write_text(f"{bound}\n", "utf-8")
        err.print(
            f"ComfyLoop {__version__} on http://{bracketed(settings.host)}:{bound}  (data in {settings.home})"
        )
        err.print(f"Open http://{reached(settings.host)}:{bound} in a browser to watch it learn.")
        if comfyui is not None:
            url = f"http://{reached(settings.host)}:{bound}"
            stack.enter_context(beside.running(comfyui, url, settings.token, comfyui_arguments or (), _say))
        server.run(services, listener, front)


def _say(sentence: str) -> None:
    err.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _write_into(log: Path) -> None:
    """Have what this process prints, and whatever it starts, go to the end of a file; a long one begins anew."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LOG_BYTES:
            platforms.replace(log, log.with_name(f"{log.name}.before"))
        stream = log.open("a", buffering=1, encoding="utf-8", errors="replace")
    except OSError as error:
        raise StorageError(
            f"The log {log} cannot be written: {error.strerror}.",
            "Mend its rights, or give another with --log.",
        ) from error
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream


class DemoScene(StrEnum):
    PETS = "pets"
    BRAND = "brand"


@app.command()
def demo(
    scene: Annotated[
        DemoScene,
        typer.Argument(
            help="pets: corrections to captions and to answers about pictures. brand: a brand's guide, copy and "
            "pictures in, copy and poster sketches out, corrected and trained again."
        ),
    ] = DemoScene.PETS,
    report: Annotated[
        Path, typer.Option(help="Where the report (.json and .html, of the brand a sheet too) goes.")
    ] = Path(),
    home: Annotated[
        Path | None, typer.Option(help="Keep the demo's data here; default: a temporary directory.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model; default: the embedded starter.")] = None,
    image_model: Annotated[
        str | None,
        typer.Option(help="brand: checkpoint or diffusers folder; default: the embedded image starter."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the loop end to end: ask, correct, train, judge, swap, and ask what was never corrected."""
    from comfyloop.demo import brand
    from comfyloop.demo import run as play

    if scene is DemoScene.BRAND:
        settings = settings_of(model=model, image_model=image_model)
        result, name = brand.run(settings, report, home, quiet=as_json), "brand-report"
    elif image_model is not None:
        raise InvalidInput(
            "The demo `pets` draws no pictures.", "Give --image-model to `comfyloop demo brand`."
        )
    else:
        result, name = play(settings_of(model=model), report, home, quiet=as_json), "demo-report"
    put(result, as_json, f"Report: {report / name}.json and {report / name}.html")
    if not result["ok"]:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at the machine and the settings, and say what is missing and how to mend it."""
    from comfyloop.doctor import examine

    findings = examine(settings_of())
    put(
        [finding._asdict() for finding in findings],
        as_json,
        *(f"{'[green]ok[/]' if f.ok else '[red]no[/]'}  {f.name:<11} {escape(f.sentence)}" for f in findings),
    )
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def status(project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """Where a project stands: live version, loop, what waits to be learnt."""
    with service(url, project) as client:
        loop = client.loop()
        live, _ = client.versions()
        ready = client.ready()
        rest = client.is_sleeping()
    summary = {
        "ready": ready,
        "sleeping": rest["is_sleeping"],
        "live": live,
        "loop": loop.model_dump(mode="json"),
    }
    asleep = ", its engine sleeps: the next question wakes it" if rest["is_sleeping"] else ""
    put(
        summary,
        as_json,
        f"service     {'ready' if ready else 'not ready'}{asleep}",
        f"live        v{live}",
        f"waiting     {loop.waiting} of the {loop.trigger} pieces of feedback that start a turn",
        show.loop(loop),
    )


@app.command()
def version() -> None:
    """Print ComfyLoop's own version."""
    out.print(__version__, highlight=False)
