"""The review queue: what filters and the live version are unsure of, decided by a person."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from comfyloop.cli.base import Json, Project, Url, app, put, service
from comfyloop.client.client import Client
from comfyloop.errors import InvalidInput, NotFound
from comfyloop.records import MOST_REVIEWED, QueueItem
from comfyloop.texts import in_a_line

queue_app = typer.Typer(
    help="What a person should look at: filters, or the live version, are unsure of it.", no_args_is_help=True
)
app.add_typer(queue_app, name="queue")

Author = Annotated[str, typer.Option(help="Who decides.")]
Items = Annotated[
    list[str] | None, typer.Argument(help="item_...: see comfyloop queue list", show_default=False)
]
Filter = Annotated[
    str | None, typer.Option("--filter", "-f", help="All that this filter, or `live`, asks about.")
]
LeftOut = Annotated[
    bool, typer.Option("--left-out", help="Of what filters left out, not of what they ask about.")
]


@queue_app.command("list")
def list_(
    filter: Annotated[
        str | None, typer.Option("--filter", "-f", help="Only what this filter, or `live`, asks about.")
    ] = None,
    left_out: LeftOut = False,
    decided: Annotated[bool, typer.Option("--decided", help="What was decided, newest first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Show the first so many.")] = 20,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """What filters and the live version are unsure of, first what is most in doubt."""
    state = "decided" if decided else "left_out" if left_out else "waiting"
    with service(url, project) as client:
        items = client.queue(state=state, filter=filter, limit=limit)
    lines = [line for item in items for line in _lines(item)]
    put(items, as_json, *(lines or ["Nothing is asked." if state == "waiting" else "There is nothing."]))


def _lines(item: QueueItem) -> list[str]:
    question = next((m.text for m in reversed(item.messages[:-1]) if m.role == "user"), "")
    heading = f"[bold]{escape(item.id)}[/]  {escape(in_a_line(item.messages[-1].text))}"
    lines = [heading, *([f"    [dim]asked[/] {escape(in_a_line(question))}"] if question else [])]
    lines += [f"    [dim]picture[/] {sha}" for message in item.messages for sha in message.images]
    lines += [
        f"    {reason.filter}: {escape(reason.sentence)}{escape(f' ({reason.detail})') if reason.detail else ''}"
        for reason in item.reasons
    ]
    if item.decided is not None:
        words = f": {in_a_line(item.decided.text)}" if item.decided.text else ""
        lines.append(
            f"    {item.decided.decision} by {escape(item.decided.author)} [dim]{item.decided.id}[/]{escape(words)}"
        )
    return lines


@queue_app.command("accept")
def accept(
    items: Items = None,
    filter: Filter = None,
    left_out: LeftOut = False,
    author: Author = "local",
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Items are learned as they are, also what a filter left out."""
    with service(url, project) as client:
        _decide(client, "accept", items or [], filter, left_out, author, as_json)


@queue_app.command("reject")
def reject(
    items: Items = None,
    filter: Filter = None,
    left_out: LeftOut = False,
    author: Author = "local",
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Items are not learned, whoever sends them again."""
    with service(url, project) as client:
        _decide(client, "reject", items or [], filter, left_out, author, as_json)


@queue_app.command("fix")
def fix(
    item: Annotated[str, typer.Argument(help="item_...: see comfyloop queue list")],
    text: Annotated[str, typer.Argument(help="What the answer, or prompt, is to be.")],
    author: Author = "local",
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Another text is learned in an item's place, and preferred to it."""
    with service(url, project) as client:
        id = client.decide("fix", [item], text=text, author=author)
    put({"decisions": [id]}, as_json, f"{id}: fixed. The next snapshot has it.")


@queue_app.command("undo")
def undo(
    decision: Annotated[
        str | None, typer.Argument(help="fb_...: see comfyloop queue list --decided; default: the newest.")
    ] = None,
    author: Author = "local",
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Take a decision back, all of it."""
    with service(url, project) as client:
        if decision is None:
            entries = client.pages("/v1/queue/decisions")
            decision = next((entry["decision"]["id"] for entry in entries if _can_be_undone(entry)), None)
        if decision is None:
            raise NotFound("No decision stands that could be taken back.", "comfyloop queue list --decided")
        id = client.decide("undo", undoes=decision, author=author)
    put({"decisions": [id]}, as_json, f"{decision} is taken back.")


def _can_be_undone(entry: dict[str, object]) -> bool:
    decision = entry["decision"]
    return bool(entry["stands"]) and isinstance(decision, dict) and decision["decision"] != "undo"


def _decide(
    client: Client,
    decision: str,
    ids: list[str],
    filter: str | None,
    left_out: bool,
    author: str,
    as_json: bool,
) -> None:
    if bool(ids) is (filter is not None):
        raise InvalidInput(
            "Name the items, or the filter whose items are meant.",
            f"E.g.: comfyloop queue {decision} --filter image_sharpness",
        )
    if filter is not None:
        items = client.queue(state="left_out" if left_out else "waiting", filter=filter)
        ids = [item.id for item in items]
    decisions = [
        client.decide(decision, ids[begin : begin + MOST_REVIEWED], author=author)
        for begin in range(0, len(ids), MOST_REVIEWED)
    ]
    lines = [
        f"{id} decides {min(MOST_REVIEWED, len(ids) - n * MOST_REVIEWED)}." for n, id in enumerate(decisions)
    ]
    put({"decisions": decisions, "items": ids}, as_json, *(lines or ["Nothing is asked."]))
