"""Asking, looking at answers, correcting them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape

from comfyloop.cli.base import Json, Project, Url, app, put, service
from comfyloop.errors import InvalidInput
from comfyloop.records import Generation

feedback_app = typer.Typer(help="What people did: list it, or bring it in from a file.", no_args_is_help=True)
app.add_typer(feedback_app, name="feedback")


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", exists=True, dir_okay=False, help="Picture(s) to ask about."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="acme, acme@17, acme@base.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    examples: Annotated[bool, typer.Option(help="Let past edits of near questions help.")] = True,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Ask the live version of a project, or another one."""
    with service(url, project) as client:
        answer = client.ask(question, image or (), model=model, max_tokens=max_tokens, examples=examples)
    helped = f"  by the example of {', '.join(answer.examples)}" if answer.examples else ""
    put(
        answer._asdict(),
        as_json,
        escape(answer.text),
        f"[dim]{answer.version}  {answer.generation}{helped}[/]",
    )


@feedback_app.command("list")
def feedback_list(
    kind: Annotated[str | None, typer.Option(help="answer_edited, answer_accepted, ...")] = None,
    author: Annotated[str | None, typer.Option(help="Only this person's.")] = None,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List what people did, oldest first."""
    with service(url, project) as client:
        items = list(client.pages("/v1/feedback", kind=kind, author=author))
    put(items, as_json, *([_feedback_line(item) for item in items] or ["No feedback yet."]))


def _feedback_line(item: dict[str, Any]) -> str:
    item = item.get("feedback", item)
    what = item.get("edited") or item.get("after") or item.get("comment") or ""
    return f"[dim]{item['id']}[/]  {item['kind']:<16} {item['author']:<10} {escape(str(what)[:70])}"


@feedback_app.command("show")
def feedback_show(
    id: Annotated[str, typer.Argument(help="fb_..., import_...")], url: Url = None, as_json: Json = False
) -> None:
    """One piece of feedback as it was sent."""
    with service(url) as client:
        item = client.call("GET", f"/v1/feedback/{quote(id, safe='')}")
    put(item, as_json, _feedback_line(item), escape(json.dumps(item, indent=2, ensure_ascii=False)))


@feedback_app.command("delete")
def feedback_delete(
    id: Annotated[str, typer.Argument(help="fb_..., import_...")], url: Url = None, as_json: Json = False
) -> None:
    """Delete one piece of feedback: the next snapshot no longer holds it."""
    with service(url) as client:
        reply = client.call("DELETE", f"/v1/feedback/{quote(id, safe='')}")
    put(reply, as_json, f"{id} is deleted. Versions trained before keep what they learnt.")


@feedback_app.command("import")
def feedback_import(
    path: Annotated[Path, typer.Argument(help="Rows: JSON lines, an array, CSV or Parquet.")],
    author: Annotated[str, typer.Option(help="Whose samples these are.")] = "local",
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Bring in training samples: the same as `comfyloop data add FILE`, which takes much else too."""
    from comfyloop.cli import data

    with service(url, project) as client:
        dataset = data.run(client, str(path), {}, author, quiet=as_json)
    put(dataset, as_json, *data.said(dataset))


@feedback_app.command("flags")
def feedback_flags(project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """What you are asked about feedback: opposite answers that two people want, phrases that seem planted, and what
    somebody wants no longer."""
    with service(url, project) as client:
        _put_flags(client.flags(), as_json)


@feedback_app.command("answer")
def feedback_answer(
    flag: Annotated[
        str, typer.Argument(help="disagreement-..., trigger-..., change-...: see comfyloop feedback flags")
    ],
    keep: Annotated[
        str,
        typer.Argument(help="The feedback whose claim holds; all: they are meant so; none: none is learned."),
    ],
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Answer what you are asked about feedback; the next turn goes by it."""
    with service(url, project) as client:
        _put_flags(client.answer_flag(flag, keep), as_json)


def _put_flags(flags: list[dict[str, Any]], as_json: bool) -> None:
    lines = []
    for flag in flags:
        lines.append(f"[bold]{escape(flag['id'])}[/]  {escape(flag['sentence'])}")
        for choice in flag["choices"]:
            lines.append(
                f"    {escape(choice['feedback'])}  {escape(choice['author'])} {escape(choice['wants'])}"
            )
        keep = {"trigger": "all | none", "change": f"{flag['choices'][-1]['feedback']} | all"}.get(
            flag["kind"], "FEEDBACK | all | none"
        )
        lines.append(escape(f"    comfyloop feedback answer {flag['id']} {keep}"))
    put(flags, as_json, *(lines or ["Nothing is asked."]))


@app.command()
def generation(
    id: Annotated[str, typer.Argument(help="gen_...")], url: Url = None, as_json: Json = False
) -> None:
    """One answer as it was recorded: messages, version, sampling settings."""
    with service(url) as client:
        record: Generation = client.generation(id)
    question = record.messages[-1].text
    put(
        record,
        as_json,
        f"[bold]{escape(question)}[/]",
        escape(record.answer),
        f"[dim]{record.project}@{record.version}[/]",
    )


@app.command()
def preferences(
    id: Annotated[
        str | None, typer.Argument(help="Which one, e.g. length; or a name for one of your own.")
    ] = None,
    text: Annotated[str | None, typer.Argument(help="What it is to say from now on.")] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take it away; edits do not bring it back.")
    ] = False,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """What the edits of a project say in words. With ID and TEXT, write one; with ID and --remove, take one away."""
    if (id is None) != (text is None and not remove) or (text is not None and remove):
        raise InvalidInput(
            "A preference is changed by its ID and a TEXT, or by its ID and --remove.",
            'E.g.: comfyloop preferences length "At most ten words."',
        )
    with service(url, project) as client:
        items = client.preferences(id, text)
    put(items, as_json, *([_preference_line(item) for item in items] or ["No preferences yet."]))


def _preference_line(item: dict[str, Any]) -> str:
    shown = f"{len(item['feedback'])} of {item['of']} edits" if item["written"] else "your own"
    return f"{item['id']:<16} {item['text']}  [dim]{shown}[/]"
