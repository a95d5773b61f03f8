"""What every command uses: the application, its options, the service, and how results are printed."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from comfyloop import tokens
from comfyloop.client.addresses import reached
from comfyloop.client.client import Client
from comfyloop.complaints import in_words
from comfyloop.errors import InvalidInput
from comfyloop.settings import FILE, FileRead, Settings, files_read, home_folder, unknown_variables

app = typer.Typer(
    name="comfyloop",
    help="ComfyUI that learns from the person who uses it: feedback in, a better LoRA out, swapped in live.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

out = Console()
err = Console(stderr=True)

Project = Annotated[
    str | None,
    typer.Option("--project", "-p", help="Default: the setting `project`, else the service's own."),
]
Url = Annotated[str | None, typer.Option("--url", help="The service; default: where the settings put it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]


def settings_of(**overrides: Any) -> Settings:
    """The settings, with what was given on the command line over them; a folder's own file is told of."""
    try:
        for file in files_read():
            if file.path.parent != home_folder():
                err.print(settings_sentence(file), style="dim", highlight=False, soft_wrap=True)
        for name in unknown_variables():
            err.print(variable_sentence(name), style="dim", highlight=False, soft_wrap=True)
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise InvalidInput(
            f"The settings are wrong: {in_words(error.errors(), 'together')}.",
            "They come from COMFYLOOP_* variables, comfyloop.toml and the command line.",
        ) from None


def settings_sentence(file: FileRead) -> str:
    """Which settings file was read, and what in it was not."""
    if not file.ignored:
        return f"Settings of {file.path} are used."
    return (
        f"Settings of {file.path} are used, but not {', '.join(file.ignored)}: a folder's file may not set "
        f"what runs programs, reads elsewhere or sends. Put them into {home_folder() / FILE} if you want them."
    )


def variable_sentence(name: str) -> str:
    """That a variable is no setting, and which one was meant by it."""
    variables = [f"COMFYLOOP_{field}".upper() for field in Settings.model_fields]
    near = difflib.get_close_matches(name.upper(), variables, n=1)
    return (
        f"The variable {name} is not used: there is no such setting{f'; {near[0]} is one' if near else ''}."
    )


@contextlib.contextmanager
def service(url: str | None, project: str | None = None) -> Iterator[Client]:
    settings = settings_of()
    if project is None and "project" in settings.model_fields_set:  # a variable or a file says which
        project = settings.project
    # The token that our own service made is for it alone, not for whoever --url names.
    token = settings.token or ("" if url else tokens.stored(settings.home))
    with Client(url or f"http://{reached(settings.host)}:{settings.port}", token, project) as client:
        yield client


def put(data: Any, as_json: bool, *shown: Any) -> None:
    """Print a record or plain data as JSON, else what is shown of it to a person."""
    if as_json:
        escaped = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
        sys.stdout.write(json.dumps(plain(data), ensure_ascii=escaped, indent=2) + "\n")
    else:
        for thing in shown or (plain(data),):
            out.print(thing, highlight=False)


def plain(data: Any) -> Any:
    if isinstance(data, list | tuple):
        return [plain(item) for item in data]
    return data.model_dump(mode="json") if hasattr(data, "model_dump") else data
