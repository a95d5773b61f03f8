"""OpenAI's stored chat completions, as its API lists them, each with the messages that it answers.

The API keeps these apart (``/chat/completions/{id}/messages``): they stand under ``messages`` or ``input`` of a
completion, as a list or as the API's list object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from comfyloop.formats import UnusableRow
from comfyloop.sources import rows
from comfyloop.sources.source import DataSource, SourceItem, SourceOptions
from comfyloop.sources.tree import Tree


def _is_completion(value: Mapping[str, Any]) -> bool:
    return value.get("object") == "chat.completion" or isinstance(value.get("choices"), list)


def _listed(value: Mapping[str, Any]) -> list[Any] | None:
    data = value.get("data")
    return data if value.get("object") == "list" and isinstance(data, list) else None


def fits(tree: Tree) -> bool:
    for _, value in tree.first_values:
        data = _listed(value)
        first = data[0] if data else value
        if isinstance(first, dict) and _is_completion(first):
            return True
    return False


def read(tree: Tree, options: SourceOptions) -> Iterator[SourceItem]:
    for one in rows.read(tree, options):
        if one.item.value is None:
            yield one
            continue
        data = _listed(one.item.value)
        for number, completion in enumerate(data if data is not None else [one.item.value], start=1):
            try:
                row, problem = _row(completion), ""
            except UnusableRow as error:
                row, problem = None, str(error)
            place = number if data is not None else one.item.item
            yield replace(one, item=replace(one.item, value=row, problem=problem, item=place))


def _row(completion: Any) -> dict[str, Any]:
    if not isinstance(completion, dict) or not _is_completion(completion):
        raise UnusableRow("it is no chat completion")
    asked = next((completion[key] for key in ("messages", "input") if completion.get(key)), None)
    if isinstance(asked, dict):
        asked = _listed(asked)
    if not isinstance(asked, list) or not asked:
        raise UnusableRow(
            "it has no messages: the API keeps them apart, under /chat/completions/{id}/messages; put them beside it"
        )
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise UnusableRow("it has no choice with a message")
    if choice.get("finish_reason") == "length":
        raise UnusableRow("its answer was broken off (finish_reason length)")
    return {"id": str(completion.get("id", "")), "messages": [*map(_message, asked), _message(message)]}


def _message(message: Any) -> dict[str, Any]:
    """Only what was said: what else the API tells of a message is not the person's."""
    if not isinstance(message, dict):
        raise UnusableRow("one of its messages is no object")
    parts = message.get("content_parts")
    kept = {
        key: message[key]
        for key in ("role", "tool_calls", "function_call", "refusal", "audio")
        if message.get(key)
    }
    return kept | {"content": parts if isinstance(parts, list) and parts else message.get("content")}


SOURCE = DataSource("openai", "OpenAI's stored chat completions with their messages", fits, read)
