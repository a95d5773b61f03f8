"""Data from elsewhere: looked at, added, listed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from comfyloop.cli.base import Json, Project, Url, app, err, put, service
from comfyloop.client.client import Client
from comfyloop.errors import ComfyLoopError, DataError, InvalidInput

data_app = typer.Typer(
    help="Data from elsewhere: files, folders, archives, other tools' exports, built-in sets, hubs.",
    no_args_is_help=True,
)
app.add_typer(data_app, name="data")

What = Annotated[
    str,
    typer.Argument(
        help="A file, folder or archive; a built-in set (comfyloop data list); hf:OWNER/NAME or ms:OWNER/NAME.",
        show_default=False,
    ),
]


class Crop(StrEnum):
    SUBJECT = "subject"
    MIDDLE = "middle"


@data_app.command("add")
def add(
    what: What,
    author: Annotated[str, typer.Option(help="Whose samples these are.")] = "local",
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            "-m",
            help="What a column is: query=question. More than once. docs/data.md has the names.",
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="What it is; default: found by looking.")] = "",
    encoding: Annotated[str, typer.Option(help="Of its texts, such as gb18030; default: UTF-8.")] = "",
    question: Annotated[
        str,
        typer.Option(
            help="Captions are the answers to this, about their picture; default: prompts that drew it."
        ),
    ] = "",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used, and tell.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="Take so many rows at most; 0: all.")] = 0,
    licence: Annotated[str, typer.Option(help="Under which the data is, to be kept with it.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what it is and how it would be taken.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether a guess is right.")] = False,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Add a data set: all of its rows become feedback, or none. What was broken off goes on where it was."""
    from comfyloop.sources import parse_map

    request = {
        "format": format, "map": parse_map(map_ or []), "encoding": encoding, "question": question,
        "skip_bad": skip_bad, "limit": limit,
    }  # fmt: skip
    with service(url, project) as client:
        dataset = run(client, what, request, author, licence, dry_run=dry_run, ask=not yes, quiet=as_json)
    put(dataset, as_json, *said(dataset))


def run(
    client: Client,
    what: str,
    request: dict[str, Any],
    author: str,
    licence: str = "",
    *,
    dry_run: bool = False,
    ask: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Send what is here, look at it, and have it taken. The data set, or its preview.

    Raises:
        DataError: Rows cannot be used; each is named, and nothing is stored.
    """
    from comfyloop.client import datasets
    from comfyloop.sources import SourceOptions

    id, source = "", _source(what)
    with _progress(quiet) as tell:
        if source == "upload":
            path = Path(what).expanduser()
            options = SourceOptions(
                request.get("map", {}), request.get("encoding", ""), request.get("question", "")
            )
            started = datasets.begin(
                client, path.name or what, source, author=author, licence=licence, key=datasets.key_of(path)
            )
            id = started["id"]
            try:
                datasets.send(client, id, path, options, request.get("format", ""), tell)
            except ComfyLoopError:
                _give_up_if_empty(client, id)
                raise
        else:
            started = datasets.begin(client, what, source, author=author, licence=licence, key=what)
            id = started["id"]
        if dry_run or ask:
            preview = client.call(
                "POST", f"/v1/datasets/{id}/preview", {**request, "rows": 5}, project=client.project
            )
    if dry_run:
        client.call("DELETE", f"/v1/datasets/{id}", project=client.project)
        return dict(preview)
    if ask and not quiet:
        put(preview, False, *said(preview))
        if (
            preview["guessed"]
            and sys.stdin.isatty()
            and not typer.confirm("Is this right?", default=True, err=True)
        ):
            raise InvalidInput(
                "Nothing was added.", "Say what its columns are: --map query=..., --map response=...."
            )
    with _progress(quiet) as tell:
        dataset = datasets.take(client, id, request, tell)
    if dataset["state"] == "done":
        return dataset
    refused = dataset["state"] == "refused"
    if refused:
        client.call("DELETE", f"/v1/datasets/{id}", project=client.project)
    again = "" if refused else " The same command goes on where it was."
    raise DataError(f"{dataset['error']}{again}")


def _give_up_if_empty(client: Client, id: str) -> None:
    if not client.call("GET", f"/v1/datasets/{id}/files", project=client.project)["items"]:
        client.call("DELETE", f"/v1/datasets/{id}", project=client.project)


def _source(what: str) -> str:
    """What names no file of this machine is a built-in set, or one of a hub."""
    from comfyloop.files import there
    from comfyloop.sources.builtin import BUILTIN
    from comfyloop.sources.hubs import HUBS

    if there(what) is not None:
        return "upload"
    if what in BUILTIN:
        return f"builtin:{what}"
    return what if what.partition(":")[0] in ("builtin", *HUBS) else "upload"


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}"), TimeElapsedColumn(),
        console=err, transient=True, disable=quiet or not err.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total or None
        )


def said(dataset: dict[str, Any]) -> list[str]:
    """A preview, or what a data set became."""
    if "samples" not in dataset:
        left_out = f", {dataset['bad']} left out" if dataset["bad"] else ""
        sentence = (
            f"{dataset['stored']} samples stored, {dataset['duplicates']} were there already{left_out}."
        )
        return [
            sentence,
            *map(escape, dataset["notes"]),
            *(map(escape, dataset["problems"]) if dataset["bad"] else ()),
        ]
    lines = [f"[bold]{dataset['format']}[/]: {escape(dataset['what'])}"]
    if dataset["mapping"]:
        how = "guessed by their names" if dataset["guessed"] else "as you say"
        columns = ", ".join(f"{target}={column}" for target, column in dataset["mapping"].items())
        lines.append(f"Columns, {how}: [bold]{escape(columns)}[/]")
        if dataset["left_out"]:
            lines.append(escape(f"Columns that are left out: {', '.join(dataset['left_out'])}"))
    for sample in dataset["samples"]:
        lines.append(f"[dim]{escape(sample['place'])}[/]")
        if sample["problem"]:
            lines.append(f"  [red]{escape(sample['problem'])}[/]")
        lines += [escape(f"  {name}") for name in sample["images"]]
        lines += [f"  [dim]{turn['role']}[/] {escape(turn['text'])}" for turn in sample["messages"]]
        if sample["rejected"]:
            lines.append(f"  [dim]not[/] {escape(sample['rejected'])}")
        if sample["label"] is not None:
            lines.append(f"  [dim]{'wanted' if sample['label'] else 'not wanted'}[/]")
    return lines


@data_app.command("caption")
def caption(
    path: Annotated[Path, typer.Argument(help="A folder of pictures, or one.", exists=True)],
    template: Annotated[
        str,
        typer.Option(help="What the model is asked of each; {name} stands for the words of the file's name."),
    ] = "Describe this picture in one sentence.",
    question: Annotated[
        str, typer.Option(help="Captions are the answers to this; default: prompts, for the image side.")
    ] = "",
    model: Annotated[
        str, typer.Option(help="Who writes them, e.g. acme@17; default: the live version.")
    ] = "",
    engine: Annotated[
        str,
        typer.Option(
            help="Another OpenAI-compatible service that writes them, by its URL; its key is read from OPENAI_API_KEY."
        ),
    ] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest caption in tokens.")] = 120,
    review: Annotated[
        bool, typer.Option(help="Learn each only once a person has accepted it (comfyloop queue).")
    ] = True,
    author: Annotated[str, typer.Option(help="In whose name they are stored.")] = "local",
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Write captions for pictures that have no text beside them; each is learned once a person has accepted it."""
    from comfyloop.client import captioning

    options = captioning.CaptionOptions(template, question, model, max_tokens, author, review)
    pictures = captioning.without_caption(path)
    with ExitStack() as stack:
        client = stack.enter_context(service(url, project))
        other = None
        if engine:
            key = os.environ.get("OPENAI_API_KEY", "")
            other = stack.enter_context(Client(engine.rstrip("/").removesuffix("/v1"), key))
        tell = stack.enter_context(_progress(as_json))
        captions = list(
            captioning.write(
                client, pictures, options, other, lambda done, total: tell("captions", done, total)
            )
        )
    new = [one for one in captions if one.caption]
    failed = [one for one in captions if one.problem]
    lines = [f"[dim]{escape(Path(one.picture).name)}[/]  {escape(one.caption)}" for one in new[:20]]
    lines += [f"[red]{escape(Path(one.picture).name)}: {escape(one.problem)}[/]" for one in failed]
    there_already = len(captions) - len(new) - len(failed)
    where = (
        "They wait: comfyloop queue list --filter unreviewed." if review else "They are learned as they are."
    )
    lines.append(
        f"{len(new)} captions were written, {there_already} were there already. {where if new else ''}".rstrip()
    )
    put([asdict(one) for one in captions], as_json, *lines)
    if failed:
        raise typer.Exit(1)


@data_app.command("crop")
def crop(
    what: Annotated[Path, typer.Argument(help="A picture, or a folder of them.", exists=True)],
    out: Annotated[
        Path, typer.Option(help="Folder into which they are drawn, with what is cut away darkened.")
    ] = Path("crops"),
    resolution: Annotated[
        int, typer.Option(min=64, help="Side of a square of as many pixels as the image model is trained on.")
    ] = 512,
    by: Annotated[
        Crop, typer.Option("--by", help="Keep the subject or the middle, as the setting image_crop says.")
    ] = Crop.SUBJECT,
    as_json: Json = False,
) -> None:
    """Show how the image side will cut pictures, before anything is trained on them. Nothing is changed."""
    from comfyloop.train.image.preview import previews

    if out.resolve() == (what if what.is_dir() else what.parent).resolve():
        raise InvalidInput("What is drawn would lie among the pictures.", "Give another folder: --out.")
    cuts, bad = previews(what, out, resolution, by.value)
    lines = [f"{one['picture']}: {one['kept']} of {one['size']}, as {one['drawn']}" for one in cuts]
    for name, why in bad:
        err.print(f"{escape(name)}: {escape(why)}", style="red")
    if cuts:
        lines.append('Where it is wrong, say it in its row: "crop": [left, top, right, bottom].')
    put(cuts, as_json, *map(escape, lines))
    if bad:
        raise typer.Exit(1)


@data_app.command("list")
def list_(project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """The data sets that were added, and those that come with ComfyLoop: size, licence, modalities."""
    with service(url, project) as client:
        listing = client.call("GET", "/v1/datasets", project=client.project)
    put(listing, as_json, *_tables(listing))


def _tables(listing: dict[str, Any]) -> Iterator[Table]:
    if listing["items"]:
        own_sets = Table(
            "id", "name", "state", "rows", "pictures", "licence", title="Added", title_justify="left"
        )
        for item in listing["items"]:
            rows = f"{item['stored'] + item['duplicates'] or item['rows']}"
            own_sets.add_row(
                item["id"],
                escape(item["name"]),
                item["state"],
                rows,
                str(item["pictures"]),
                escape(item["licence"]),
            )
        yield own_sets
    builtin = Table(
        "name",
        "what",
        "rows",
        "size",
        "modalities",
        "languages",
        "licence",
        title="Built in",
        title_justify="left",
    )
    for one in listing["builtin"]:
        size = f"{one['bytes'] / 1e6:.1f} MB" if one["bytes"] >= 1e5 else f"{one['bytes'] / 1e3:.0f} kB"
        words = (", ".join(one["modalities"]), ", ".join(one["languages"]), escape(one["licence"]))
        builtin.add_row(one["name"], escape(one["what"]), str(one["rows"]), size, *words)
    yield builtin


@data_app.command("show")
def show(
    id: Annotated[str, typer.Argument(help="ds_...")],
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """One data set: how far it is, what it was found to be, what was wrong with it."""
    with service(url, project) as client:
        dataset = client.call("GET", f"/v1/datasets/{quote(id, safe='')}", project=client.project)
    lines = [
        f"{name}: {escape(str(value))}"
        for name, value in dataset.items()
        if value not in ("", 0, [], {}, None)
    ]
    put(dataset, as_json, *lines)


@data_app.command("remove")
def remove(
    id: Annotated[str, typer.Argument(help="ds_...")],
    samples: Annotated[
        bool, typer.Option("--samples", help="Its samples, too: the next snapshot no longer holds them.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Its samples, and every version that learned them.")
    ] = False,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Give up a data set that is not stored yet, and leave nothing of it; of a stored one the entry, or all of it."""
    what = "forget" if forget else "delete" if samples else "keep"
    with service(url, project) as client:
        path = f"/v1/datasets/{quote(id, safe='')}"
        reply = client.call("DELETE", path, project=client.project, samples=what)
    lines = [f"{id} is removed."]
    if what == "keep":
        lines.append("What is feedback stays: --samples takes it out, --forget what learned it, too.")
    else:
        lines.append(f"{reply['deleted']} samples are deleted.")
    if reply["versions"]:
        lines.append(f"Withdrawn, since they had learned them: {', '.join(map(str, reply['versions']))}.")
    put(reply, as_json, " ".join(lines))
