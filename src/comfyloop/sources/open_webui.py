"""Open WebUI's export of feedback: ratings, each with a snapshot of the chat.

An answer that the person rewrote is learnt, and preferred to what it was; one that was only rated is labelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from comfyloop.formats import UnusableRow
from comfyloop.media import data_urls
from comfyloop.sources import rows
from comfyloop.sources.source import DataSource, SourceItem, SourceOptions
from comfyloop.sources.tree import Tree

_REASONING = re.compile(
    r"<details type=\"(?:reasoning|code_interpreter|tool_calls)\".*?</details>\s*", re.DOTALL
)
_LONGEST = 10_000
"""Messages of a chat: a chain that goes in a circle ends."""


def fits(tree: Tree) -> bool:
    return any(
        isinstance(value.get("data"), dict)
        and "rating" in value["data"]
        and {"meta", "snapshot"} & value.keys()
        for _, value in tree.first_values
    )


def read(tree: Tree, options: SourceOptions) -> Iterator[SourceItem]:
    for one in rows.read(tree, options):
        if one.item.value is None:
            yield one
            continue
        try:
            item = replace(one.item, value=_row(one.item.value))
        except UnusableRow as error:
            item = replace(one.item, value=None, problem=str(error))
        yield replace(one, item=item)


def _row(feedback: Mapping[str, Any]) -> dict[str, Any]:
    data, meta = feedback.get("data") or {}, feedback.get("meta") or {}
    said, chat = _messages(feedback.get("snapshot"))
    rated = said.get(str(meta.get("message_id")))
    if rated is None:
        raise UnusableRow(
            "the answer that it rates is not in its snapshot: export feedback together with its chats"
        )
    if rated.get("role") != "assistant":
        raise UnusableRow("it rates a message that is no answer")
    messages = _system(chat) + [_message(message) for message in _chain(said, rated)]
    row: dict[str, Any] = {"id": str(feedback.get("id", "")), "messages": messages}
    before, answer = _plain(rated.get("originalContent")), _plain(rated.get("content"))
    if before.strip() and before.strip() != answer.strip():
        row["rejected_response"] = before
    else:
        row["label"] = _wanted(data.get("rating"))
    told = [str(data[key]) for key in ("reason", "comment") if data.get(key)]
    return row | ({"comment": ": ".join(told)[:1000]} if told else {})


def _messages(snapshot: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    chat = snapshot.get("chat") if isinstance(snapshot, dict) else None
    inner = chat.get("chat") if isinstance(chat, dict) else None
    for one in (inner, chat):
        history = one.get("history") if isinstance(one, dict) else None
        messages = history.get("messages") if isinstance(history, dict) else None
        if isinstance(one, dict) and isinstance(messages, dict):
            return {key: m for key, m in messages.items() if isinstance(m, dict)}, one
    raise UnusableRow("it has no snapshot of the chat: export feedback together with its chats")


def _system(chat: Mapping[str, Any]) -> list[dict[str, Any]]:
    params = chat.get("params")
    system = params.get("system") if isinstance(params, dict) else None
    return (
        [{"role": "system", "content": [{"type": "text", "text": system}]}]
        if isinstance(system, str) and system
        else []
    )


def _chain(said: Mapping[str, Any], last: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """From the first message to this one."""
    chain = [last]
    while (parent := said.get(str(chain[-1].get("parentId")))) is not None:
        if len(chain) > _LONGEST:
            raise UnusableRow("its messages follow each other in a circle")
        chain.append(parent)
    return chain[::-1]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    files = message.get("files")
    pictures = [
        {"type": "image", "image": file.get("url", "")}
        for file in (files if isinstance(files, list) else [])
        if isinstance(file, dict) and file.get("type") == "image"
    ]
    if any(not data_urls.is_one(str(picture["image"])) for picture in pictures):
        raise UnusableRow("its picture is kept by Open WebUI, and is not in the export")
    text = {"type": "text", "text": _plain(message.get("content"))}
    return {"role": message.get("role"), "content": [*pictures, text]}


def _plain(content: Any) -> str:
    return _REASONING.sub("", content) if isinstance(content, str) else ""


def _wanted(rating: Any) -> bool:
    if str(rating) in ("1", "-1"):
        return str(rating) == "1"
    raise UnusableRow(f"its rating is {rating!r}, neither 1 nor -1, and the answer was not rewritten")


SOURCE = DataSource("open-webui", "Open WebUI's export of feedback: rated and rewritten answers", fits, read)
