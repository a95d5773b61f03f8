"""Write docs/reference from the code that it describes: `make docs`."""

from __future__ import annotations

import inspect
import os
import re
import sys
from enum import Enum
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import typer
from fastapi.routing import APIWebSocketRoute
from pydantic_core import PydanticUndefined

REFERENCE = Path(__file__).parent / "reference"

ANNOTATION, UNQUOTED = re.compile(r"(?<=[:>] )'([^']*)'"), r"\1"

SETTINGS = """\
# Settings

Each is a key in its table of `comfyloop.toml` in the home directory, or a `COMFYLOOP_*` environment variable; later
ones win: default, file, environment, command line. In its table a setting may go without the table's name (`level` in
`[gate]` is `gate_level`); at the top of the file, as before there were tables, it has its whole name. A
`comfyloop.toml` in the working directory sets those marked with a star, and nothing that runs a program, reads
elsewhere or sends. Written by `make docs`.
"""
SETTINGS_OF = """
## `[{table}]`: {doc}

| setting | variable | default | what it is |
|---|---|---|---|
"""
API = """\
# The API

A running service shows the whole of it, with bodies and answers, at `/docs` (OpenAPI: `/openapi.json`). Errors are
`{"error": {"message", "hint", "code", "type", "param"}}`. Written by `make docs`.

| route | what it does |
|---|---|
"""
SPEC = """\
# The training spec

`spec.json` in a run directory; `comfyloop train DATA --set NAME=VALUE` sets any of these. Written by `make docs`.

| field | default | what it is |
|---|---|---|
"""
IMAGE_SPEC = """
## Recipes of the image side

| field | default | what it is |
|---|---|---|
"""
FILTERS = """\
# The filters

What is left out of training data, mended or shown to a person, in the order in which filters are asked. What is set of
one stands in `comfyloop.toml` under `[filters.NAME]`. Written by `make docs`.

| filter | what it says of a sample | options |
|---|---|---|
"""
RECIPES = """\
# The recipes

What a run learns from, and what its rows have beside `messages` and `images`; more in [train.md](../train.md). Written
by `make docs`.
"""
RECIPES_OF = {
    "text": """
## Of the text side

The learning rate is for a language model up to 576 wide (SmolLM2-135M); one that is k times as wide gets a k-th of it,
7B and 8B models about a seventh. A turn that goes on from a version takes half of that.

| `recipe` | learns from | rows also have | the loop uses it with | learning rate of a LoRA | ms-swift |
|---|---|---|---|---|---|
""",
    "image": """
## Of the image side

| `recipe` | learns from | rows also have | the loop uses it with | learning rate of a LoRA | ms-swift |
|---|---|---|---|---|---|
""",
}
METRICS_PAGE = """\
# The gate's metrics

What is measured of an item, and stands in gate reports. Written by `make docs`.

| metric | what it is | better is | measured |
|---|---|---|---|
"""
ENGINES = """\
# The engines

What serves a base model: the setting `engine`, more in [serve.md](../serve.md). With `engine_swap = blue_green` those
that load adapters while they run are started anew for each, too. Written by `make docs`.

| `engine` | what it is | runs in | adapters |
|---|---|---|---|
"""
MODALITIES_PAGE = """\
# The modalities

What a message may hold, in rows, in feedback and in what a model is asked. Written by `make docs`.

| part | what it is | its fields | also written as | a model is given |
|---|---|---|---|---|
"""
PYTHON = """\
# The Python interface

What a program may import; [python.md](../python.md) shows how it is used. Written by `make docs`.

`comfyloop.Client(url, token="", project=None, *, timeout=600.0)` is closed by `with` or `close()`;
`comfyloop.AsyncClient`, whose methods are awaited, by `async with` or `aclose()`.

| method | what it does |
|---|---|
"""
RECORDS = """
## Records

In `comfyloop.records`: what the methods take and give, and what that is made of.

| record | fields |
|---|---|
"""
ERRORS = """
## Errors

In `comfyloop.errors`, each with `message`, `hint` and `retry_after`.

| error | is a | code | HTTP status | exit code of a command |
|---|---|---|---|---|
"""
COMMANDS = """\
# The commands

`comfyloop COMMAND --help` lists the options. Exit codes: 0 done, 1 the answer is no, 2 wrong input, 3 not found,
4 conflict, 5 busy, 6 no service, 7 storage, 8 model, 9 data, 10 failed run. Written by `make docs`.

| command | what it does |
|---|---|
"""


def settings_page() -> str:
    from comfyloop.settings import FOLDER_MAY_SET, GROUPS, in_table

    text = SETTINGS
    for table, group in GROUPS.items():
        text += SETTINGS_OF.format(table=table, doc=(group.__doc__ or "").rstrip(".").lower())
        for name, field in group.model_fields.items():
            made = field.default is PydanticUndefined
            value = field.default_factory() if made and field.default_factory else field.default  # type: ignore[call-arg]
            shown = str(value).replace(str(Path.home()), "~") if value not in ("", ()) else ""
            text += _row(
                f"`{in_table(table, name)}`{'*' if name in FOLDER_MAY_SET else ''}",
                f"`COMFYLOOP_{name.upper()}`",
                f"`{shown}`" if shown else "",
                field.description or "",
            )
    return text


def spec_page() -> str:
    from pydantic import BaseModel

    from comfyloop.train.specs.image import ImageTrainSpec
    from comfyloop.train.specs.text import TrainSpec

    rows: list[str] = []
    parts: list[str] = []

    def tell(record: type[BaseModel], prefix: str, into: list[str]) -> None:
        for name, field in record.model_fields.items():
            part = isinstance(field.default, BaseModel)
            shown = "" if part or field.is_required() else f"`{field.default}`"
            into.append(_row(f"`{prefix}{name}`", shown, field.description or ""))
            if part:
                tell(type(field.default), f"{prefix}{name}.", parts)

    tell(TrainSpec, "", rows)
    text = SPEC + "".join(rows + parts)
    rows, parts = [], []
    tell(ImageTrainSpec, "", rows)
    return text + IMAGE_SPEC + "".join(rows + parts)


def filters_page() -> str:
    from comfyloop.curate.filters import in_order

    rows = []
    for filter in in_order():
        options = [
            f"`{name}` = `{str(field.default).lower() if isinstance(field.default, bool) else field.default}`: "
            f"{field.description or ''}"
            for name, field in filter.options.model_fields.items()
        ]
        rows.append(_row(f"`{filter.name}`", filter.sentence, "<br>".join(options)))
    return FILTERS + "".join(rows)


def recipes_page() -> str:
    from comfyloop.recipes import Recipe, of_side

    def command(recipe: Recipe) -> str:
        if recipe.swift is None:
            return ""
        return "`swift sft`" if recipe.swift.command == "sft" else f"`swift rlhf --rlhf_type {recipe.name}`"

    def told(recipe: Recipe) -> str:
        rate = f"{recipe.learning_rate:.0e}".replace("e-0", "e-")
        cells = recipe.learns_from, recipe.rows, recipe.source, f"`{rate}`", command(recipe)
        return _row(f"`{recipe.name}`", *cells)

    text = RECIPES
    for side in ("text", "image"):
        text += RECIPES_OF[side] + "".join(map(told, of_side(side).values()))
    return text


def engines_page() -> str:
    from comfyloop.serve.engines.kinds import KINDS

    def place(kind: Any) -> str:
        if kind.environment:
            return f"`comfyloop engines install {kind.environment}`"
        return "whatever you start it in" if kind.name == "url" else "this environment"

    adapters = {True: "loaded and unloaded while it runs", False: "given at its start: swapped blue-green"}
    rows = [_row(f"`{k.name}`", k.does, place(k), adapters[k.loads]) for k in KINDS.values()]
    return ENGINES + "".join(rows)


def metrics_page() -> str:
    from comfyloop.gate.metrics import METRICS

    return METRICS_PAGE + "".join(
        _row(
            f"`{metric.name}`",
            metric.words,
            "higher" if metric.higher_is_better else "lower",
            "of every answer" if metric.of_answer is not None else "where it is asked for",
        )
        for metric in METRICS.values()
    )


def modalities_page() -> str:
    from comfyloop.modalities import MODALITIES

    return MODALITIES_PAGE + "".join(
        _row(
            f"`{modality.name}`",
            modality.does,
            ", ".join(f"`{field}`" for field in modality.part.model_fields if field != "type"),
            ", ".join(f"`{kind}`" for kind in modality.types if kind != modality.name),
            "its bytes" if modality.holds_bytes else "a text",
        )
        for modality in MODALITIES.values()
    )


def api_page() -> str:
    from comfyloop.serve.api.app import NOUNS, create_app
    from comfyloop.serve.api.services import Services
    from comfyloop.settings import Settings

    nothing = cast(Any, None)  # the routes are described, none is called
    services = Services(Settings(), nothing, nothing, nothing)
    app = create_app(services)
    rows = [
        _row(f"`{method.upper()} {path}`", route["summary"])
        for path, methods in app.openapi()["paths"].items()
        for method, route in methods.items()
    ]
    sockets = [r for noun in NOUNS for r in noun.router.routes if isinstance(r, APIWebSocketRoute)]
    rows += [_row(f"`WebSocket {r.path}`", (r.endpoint.__doc__ or "").partition("\n")[0]) for r in sockets]
    return API + "".join(rows)


def commands_page() -> str:
    from comfyloop.cli import app

    rows: list[str] = []

    def list_under(group: Any, name: str) -> None:
        for word, command in group.commands.items():
            if hasattr(command, "commands"):
                list_under(command, f"{name} {word}")
            else:
                rows.append(_row(f"`{name} {word}`", command.get_short_help_str(300)))

    list_under(cast(Any, typer.main.get_command(app)), "comfyloop")
    return COMMANDS + "".join(rows)


def python_page() -> str:
    from comfyloop import Answer, AsyncClient, Client, errors

    methods = []
    for name in sorted(name for name in vars(AsyncClient) if not name.startswith("_") and name != "aclose"):
        signature = inspect.signature(getattr(Client, name))
        named = signature.replace(parameters=list(signature.parameters.values())[1:])
        summary = " ".join((getattr(Client, name).__doc__ or "").partition("\n\n")[0].split())
        methods.append(_row(f"`{name}{ANNOTATION.sub(UNQUOTED, str(named))}`", summary))
    records = [_row("`Answer` (of `comfyloop`)", ", ".join(f"`{field}`" for field in Answer._fields))]
    records += [
        _row(f"`{found.__name__}`", ", ".join(f"`{name}`" for name in fields))
        for found, fields in sorted(_records().items(), key=lambda found: found[0].__name__)
    ]
    raised = [found for found in vars(errors).values() if inspect.isclass(found)]
    failures = [
        _row(f"`{e.__name__}`", f"`{e.__base__.__name__}`", f"`{e.code}`", str(e.status), str(e.exit_code))
        for e in raised
    ]
    return PYTHON + "".join(methods) + RECORDS + "".join(records) + ERRORS + "".join(failures)


def _records() -> dict[type, list[str]]:
    """Those that the clients' calls name, and those that these are made of, with their fields or values."""
    from pydantic import BaseModel

    from comfyloop import modalities, records
    from comfyloop.client import calls

    homes = (records.__name__, modalities.__name__)
    found: dict[type, list[str]] = {}

    def walk(kind: object) -> None:
        if isinstance(kind, type) and kind.__module__.startswith(homes) and kind not in found:
            if issubclass(kind, BaseModel):
                found[kind] = list(kind.model_fields)
                for hint in get_type_hints(kind).values():
                    walk(hint)
            elif issubclass(kind, Enum):
                found[kind] = [str(member.value) for member in kind]
        for part in get_args(kind):
            walk(part)

    for call in vars(calls).values():
        if inspect.isfunction(call) and call.__module__ == calls.__name__:
            for hint in get_type_hints(call).values():
                walk(hint)
    return found


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


PAGES = {
    "settings.md": settings_page,
    "training-spec.md": spec_page,
    "filters.md": filters_page,
    "recipes.md": recipes_page,
    "engines.md": engines_page,
    "metrics.md": metrics_page,
    "modalities.md": modalities_page,
    "api.md": api_page,
    "commands.md": commands_page,
    "python.md": python_page,
}

if __name__ == "__main__":
    for variable in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        os.environ.pop(variable, None)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
        sys.stdout.write(f"{REFERENCE / name}\n")
