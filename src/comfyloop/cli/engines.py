"""Engines in environments of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from comfyloop.cli.base import Json, app, err, put, settings_of

engines_app = typer.Typer(
    help="Engines that live in a Python environment of their own: ms-swift, ...", no_args_is_help=True
)
app.add_typer(engines_app, name="engines")


@engines_app.command("list")
def engines_list(as_json: Json = False) -> None:
    """List the engines that can be installed, and where those are that have been."""
    from comfyloop.environments import ENVIRONMENTS, find, installed

    settings = settings_of()
    listing = [
        {
            "name": name,
            "what": environment.what,
            "python": str(python) if (python := find(name, settings)) else None,
            "versions": (installed(name, settings) or {}).get("versions", {}),
        }
        for name, environment in ENVIRONMENTS.items()
    ]
    lines = [f"{e['name']:<8} {e['python'] or '[dim]not installed[/]'}  [dim]{e['what']}[/]" for e in listing]
    put(listing, as_json, *lines)


@engines_app.command("install")
def engines_install(
    name: Annotated[str, typer.Argument(help="As `comfyloop engines list` names it.")],
    without_gpu: Annotated[
        bool,
        typer.Option("--without-gpu", help="Also where the engine needs a GPU and this machine has none."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make an engine's environment, or finish one that was cut off, and check that the engine imports."""
    from comfyloop.environments import install, installed

    settings = settings_of()
    with err.status(f"installing {name}") as status:

        def tell(line: str) -> None:
            status.update(line)
            if not err.is_terminal:
                err.print(line, markup=False, highlight=False)

        python = install(name, settings, tell, without_gpu=without_gpu)
    versions = (installed(name, settings) or {}).get("versions", {})
    put(
        {"name": name, "python": str(python), "versions": versions},
        as_json,
        str(python),
        "  ".join(f"{package} {version}" for package, version in versions.items()),
    )
