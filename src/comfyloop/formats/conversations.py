"""Reads the conversation of a row in any format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyloop.formats import alpaca, messages, query_response, sharegpt, trl
from comfyloop.formats.messages import Format, Said, said_by
from comfyloop.formats.record import UnusableRow, only

_LISTS = ("messages", "conversations", "conversation")
FORMATS = (messages.FORMAT, sharegpt.FORMAT, trl.FORMAT, alpaca.FORMAT, query_response.FORMAT)
"""In the order in which a row is asked whether it is written so."""


def format_of(row: Mapping[str, Any]) -> Format | None:
    """The format of a row; None if it has no conversation."""
    return next((format for format in FORMATS if format.key_of(row)), None)


def take(row: dict[str, Any]) -> list[Said]:
    """Takes the conversation out of a row.

    Raises:
        UnusableRow: There is none, or a message cannot be used.
    """
    listed = [key for key in _LISTS if row.get(key) is not None]
    if len(listed) > 1:
        raise UnusableRow(f"it has both {listed[0]} and {listed[1]}")
    format = format_of(row)
    if format is None:
        raise UnusableRow("it has neither messages nor a query with its response")
    return with_system(row, format.take(row))


def with_system(row: dict[str, Any], messages: list[Said]) -> list[Said]:
    """Prepend the row's separate system prompt, if any, which is removed from the row.

    Raises:
        UnusableRow: There is another one in it.
    """
    prompt = only(row, ("system", "system_prompt"))
    if not prompt:
        return messages
    system = said_by("system", prompt, 0)
    if messages and messages[0].role == "system":
        if messages[0].text.strip() != system.text.strip():
            raise UnusableRow("it has two system prompts, one among its messages and one beside them")
        return messages
    return [system, *messages]
