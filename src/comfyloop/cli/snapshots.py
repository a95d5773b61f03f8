"""Snapshots: made, looked at, compared, and written for other trainers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape

from comfyloop.cli import sharing
from comfyloop.cli.base import Json, Project, Url, app, put, service
from comfyloop.cli.sharing import Form
from comfyloop.client import show
from comfyloop.client.client import Client
from comfyloop.errors import InvalidInput, NotFound

snapshot_app = typer.Typer(
    invoke_without_command=True, help="Training data as it was made: show, diff, export."
)
app.add_typer(snapshot_app, name="snapshot")

Id = Annotated[
    str | None,
    typer.Argument(help="Its id, or the beginning of it; default: the newest.", show_default=False),
]
Format = Annotated[
    str,
    typer.Option(
        help="swift: ms-swift's JSON lines; sharegpt: LLaMA-Factory's; llava; kohya: folders of pictures with captions."
    ),
]


@snapshot_app.callback()
def snapshot(context: typer.Context, project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """Curate what was fed back into a snapshot now, without training on it; or look at one that was made."""
    if context.invoked_subcommand is None:
        with service(url, project) as client:
            record = client.snapshot()
        put(record, as_json, show.snapshot(record))


@snapshot_app.command("list")
def list_(project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """The snapshots that were made, newest first."""
    with service(url, project) as client:
        items = list(client.pages("/v1/snapshots"))
    lines = [
        f"{item['id'][:12]}  {item['created_at'][:16].replace('T', ' ')}  {item['train']} to train on, "
        f"{item['holdout']} held out, {item['replay']} replayed"
        for item in items
    ]
    put(items, as_json, *(lines or ["No snapshots yet."]))


@snapshot_app.command("show")
def show_(id: Id = None, project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """What was kept, left out and why, what is to be looked at, and what the set lacks."""
    from comfyloop.curate import CurationReport

    with service(url, project) as client:
        record = _snapshot_of(client, id)
        report = client.call("GET", f"/v1/snapshots/{record['id']}/report", project=client.project)
    text = CurationReport.model_validate(report).text()
    put({"snapshot": record, "report": report}, as_json, f"[bold]{record['id']}[/]", escape(text.rstrip()))


@snapshot_app.command("diff")
def diff(
    old: Annotated[str | None, typer.Argument(help="Default: the one made before the new one.")] = None,
    new: Annotated[str | None, typer.Argument(help="Default: the newest.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="List so many changes.")] = 20,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """What a snapshot has that an earlier one has not, sample by sample."""
    from comfyloop.curate import SnapshotDiff

    with service(url, project) as client:
        later = _snapshot_of(client, new)["id"]
        earlier = _snapshot_of(client, old)["id"] if old is not None else None
        path = f"/v1/snapshots/{later}/diff"
        changes = client.call("GET", path, project=client.project, old=earlier, limit=limit)
    put(changes, as_json, escape(SnapshotDiff.model_validate(changes).text().rstrip()))


@snapshot_app.command("export")
def export_snapshot(
    target: Annotated[Path, typer.Argument(help="Directory to write; it must be new or empty.")],
    id: Annotated[str | None, typer.Option("--snapshot", help="Which one; default: the newest.")] = None,
    format: Format = "swift",
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Write a snapshot's data for training elsewhere."""
    with service(url, project) as client:
        _export(client, id, target, format, as_json)


@app.command()
def export(
    target: Annotated[
        Path,
        typer.Argument(
            help="Directory to write; it must be new or empty. With --to: the version, as acme@17."
        ),
    ],
    into: Annotated[
        Path | None, typer.Argument(help="With --to: where it is written; default: acme-17-peft and so on.")
    ] = None,
    to: Annotated[
        Form | None,
        typer.Option(
            "--to",
            help="A version for others: peft, ms-swift, merged (the base model with the text adapter in its weights), "
            "gguf (llama.cpp, Ollama), comfyui (the image LoRA), comfyui-text (for its node Generate Text).",
        ),
    ] = None,
    outtype: Annotated[
        sharing.OutType | None,
        typer.Option(help="With --to gguf: numbers of the model's matrices; default: f16."),
    ] = None,
    snapshot_id: Annotated[
        str | None, typer.Option("--snapshot", help="Which one; default: the newest.")
    ] = None,
    format: Format = "swift",
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Write a snapshot's data for training elsewhere; with --to, a version for use elsewhere."""
    if to is not None:
        put(*sharing.export_version(str(target), into, to, outtype, project, url, as_json))
        return
    if into is not None:
        raise InvalidInput(
            f"It is not said what {into} is for.", "With --to it is where a version is written."
        )
    with service(url, project) as client:
        _export(client, snapshot_id, target, format, as_json)


def _export(client: Client, id: str | None, target: Path, format: str, as_json: bool) -> None:
    from comfyloop.curate import export as write

    if id is None and next(iter(client.pages("/v1/snapshots")), None) is None:
        client.snapshot()
    record = _snapshot_of(client, id)
    exported = write(Path(record["path"]), target, format)
    files = [str(path) for path in exported.files]
    result = {"snapshot": record["id"], "files": files, "left_out": list(exported.left_out)}
    lines = files if len(files) <= 20 else [*files[:20], f"... and {len(files) - 20} more"]
    put(result, as_json, *map(escape, [*lines, *exported.left_out]))


def _snapshot_of(client: Client, id: str | None) -> dict[str, Any]:
    """A snapshot by its id or the beginning of it; None: the newest."""
    listing = client.pages("/v1/snapshots")
    if id is None:
        newest = next(iter(listing), None)
        if newest is None:
            raise NotFound("There is no snapshot yet.", "`comfyloop snapshot` makes one.")
        return newest
    if len(id) == 64:
        whole: dict[str, Any] = client.call(
            "GET", f"/v1/snapshots/{quote(id, safe='')}", project=client.project
        )
        return whole
    matches = [one for one in listing if one["id"].startswith(id)]
    if len(matches) != 1:
        how = "Several snapshots begin" if matches else "No snapshot begins"
        raise NotFound(f"{how} with {json.dumps(id)}.", "`comfyloop snapshot list` names them.")
    return matches[0]
