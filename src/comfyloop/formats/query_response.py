"""A question and its answer under separate keys, with an optional ``history``: ms-swift's query and response, and
similar."""

from __future__ import annotations

from typing import Any

from comfyloop.formats.messages import Format, Said, answer, first_of, said_by
from comfyloop.formats.record import UnusableRow

QUERY = ("query", "prompt", "instruction", "question", "problem")
RESPONSE = ("response", "answer", "output", "target", "completion")


def take(row: dict[str, Any]) -> list[Said]:
    return exchange(row, question(row))


def question(row: dict[str, Any]) -> Any:
    """Remove and return the value under the first key of a question; None if there is none."""
    key = first_of(*QUERY)(row)
    return row.pop(key) if key else None


def exchange(row: dict[str, Any], question_text: Any) -> list[Said]:
    """The history of a row, a question, and the answer of the row."""
    history = row.pop("history", None) or []
    if not isinstance(history, list) or not all(isinstance(t, list) and len(t) == 2 for t in history):
        raise UnusableRow("its history is no list of [query, response] pairs")
    messages = []
    for number, (query, response) in enumerate(history):
        messages += [said_by("user", query, 2 * number + 1), said_by("assistant", response, 2 * number + 2)]
    return [*messages, said_by("user", question_text, len(messages) + 1), *answered(row)]


def answered(row: dict[str, Any]) -> list[Said]:
    """The answer to a question; empty if a `chosen` one follows."""
    keys = [key for key in RESPONSE if row.get(key) is not None]
    if len(keys) > 1:
        raise UnusableRow(f"it has both {keys[0]} and {keys[1]}")
    return answer(row.pop(keys[0]), keys[0]) if keys else []


FORMAT = Format("query and response", first_of(*QUERY), take)
