"""The node pack in a ComfyUI."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from comfyloop.cli.base import Json, app, put, settings_of

comfyui_app = typer.Typer(
    help="The node pack for ComfyUI: put it in, see what is missing.", no_args_is_help=True
)
app.add_typer(comfyui_app, name="comfyui")

ComfyUIPath = Annotated[
    Path, typer.Argument(metavar="PATH", help="The folder in which ComfyUI was installed.")
]


@comfyui_app.command("link")
def comfyui_link(
    path: ComfyUIPath,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the pack instead of linking to it.")] = False,
    image_model: Annotated[
        bool,
        typer.Option("--image-model", help="Also put in the small checkpoint that the templates draw with."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Put the node pack into a ComfyUI; doing it again changes nothing. Start ComfyUI again afterwards."""
    from comfyloop.comfyui import link

    target = link(path, copy, settings_of().home)
    result = {"path": str(target)}
    sentences = [f"The node pack is at {target}. Start ComfyUI again to load it."]
    if image_model:
        from comfyloop.starter.image import ensure
        from comfyloop.starter.image.__main__ import place_in

        result["checkpoint"] = str(place_in(path, ensure(settings_of().cache_dir)))
        sentences.append(f"The templates' checkpoint is at {result['checkpoint']}.")
    else:
        sentences.append("Add --image-model for the small checkpoint that the templates draw with.")
    put(result, as_json, *sentences)


@comfyui_app.command("unlink")
def comfyui_unlink(path: ComfyUIPath, as_json: Json = False) -> None:
    """Take the node pack out of a ComfyUI; what waits there to be delivered stays."""
    from comfyloop.comfyui import unlink

    removed = unlink(path)
    put({"removed": removed}, as_json, "The node pack was taken out." if removed else "It was not there.")


@comfyui_app.command("doctor")
def comfyui_doctor(path: ComfyUIPath, as_json: Json = False) -> None:
    """Say what a ComfyUI lacks to work with ComfyLoop. Exit code 1 when something is missing."""
    from comfyloop.comfyui import doctor as examine

    findings = examine(path)
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]! [/]", "missing": "[red]no[/]"}
    put(
        [asdict(finding) for finding in findings],
        as_json,
        *(f"{marks[f.state]}  {f.what:<10} {f'{f.says} {f.hint}'.strip()}" for f in findings),
    )
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)
