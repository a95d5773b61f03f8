"""Who said what, in each of the forms in which data sets write it.

Forms: ``messages`` of role and content (ms-swift, OpenAI, TRL; a content may be a list of parts),
``conversations`` of from and value (ShareGPT, LLaVA), ``conversation`` of human and assistant pairs, and
question and answer under keys of their own: Alpaca's instruction/input/output, query/response/history and
their kin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfyloop.formats.record import IMAGE_TAG, UnusableRow

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
QUERY = ("query", "prompt", "instruction", "question", "problem")
RESPONSE = ("response", "answer", "output", "target", "completion")
_LISTS = ("messages", "conversations", "conversation")
_TOOLS = ("tool", "function", "function_call", "tool_call", "tool_response", "observation")
_UNLEARNABLE = (  # what would be lost of a message
    "tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning", "thinking", "refusal", "audio",
)  # fmt: skip
_NAMES = ("role", "from", "content", "value", "weight", "loss", "name", *_UNLEARNABLE)


@dataclass(frozen=True)
class Place:
    """Where a picture goes: its own source, or None for the next of the row's list."""

    source: Any = None


Piece = str | Place


@dataclass(frozen=True)
class Said:
    """One message as it was written."""

    role: str
    parts: tuple[Piece, ...]
    tagged: bool  # a plain string: its image tags stand for pictures, if the row has any
    learn: bool = True

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


def take(row: dict[str, Any]) -> list[Said]:
    """Takes the conversation out of a row, whichever form it has.

    Raises:
        UnusableRow: There is none, or a message cannot be used.
    """
    keys = [key for key in _LISTS if row.get(key) is not None]
    if len(keys) > 1:
        raise UnusableRow(f"it has both {keys[0]} and {keys[1]}")
    if keys:
        said = messages(row.pop(keys[0]), keys[0])
    elif isinstance(row.get("prompt"), list):
        said = messages(row.pop("prompt"), "prompt") + _answered(row)
    else:
        said = _query_response(row)
    systems = [row.pop(key) for key in ("system", "system_prompt") if row.get(key)]
    if systems:
        said = _with_system(said, systems[0])
    if not said:
        raise UnusableRow("it has no messages")
    return said


def messages(listed: Any, key: str) -> list[Said]:
    """A list of messages. Raises UnusableRow."""
    if not isinstance(listed, list) or not listed:
        raise UnusableRow(f"its {key} are no list of messages")
    said: list[Said] = []
    for number, message in enumerate(listed, start=1):
        if not isinstance(message, dict):
            raise UnusableRow(f"message {number} is a {type(message).__name__}, not an object")
        if "role" in message or "from" in message:
            said.append(_message(message, number))
        else:
            pairs = [key for key in ("system", "user", "human", "assistant", "gpt", "bot") if key in message]
            if not pairs:
                raise UnusableRow(f"message {number} has no role")
            said += [_said(key, message[key], number) for key in pairs]
    return said


def _message(message: dict[str, Any], number: int) -> Said:
    for key in _UNLEARNABLE:
        if message.get(key):
            raise UnusableRow(f"message {number} has {key}, which cannot be trained on")
    for key, value in message.items():
        if key not in _NAMES and value not in (None, "", [], {}):
            raise UnusableRow(f"message {number} has the key {key}, whose meaning would be lost")
    said = _said(
        message.get("role", message.get("from")), message.get("content", message.get("value")), number
    )
    return Said(said.role, said.parts, said.tagged, _learn(message, said.role, number))


def _said(role: Any, content: Any, number: int) -> Said:
    known = ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        tools = ": tool calls cannot be trained on" if role in _TOOLS else ""
        raise UnusableRow(
            f"message {number} has the role {role!r}, which is none of {', '.join(ROLES)}{tools}"
        )
    if isinstance(content, str):
        return Said(known, (content,), tagged=True)
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list) and content:
        return Said(known, tuple(_part(part, number) for part in content), tagged=False)
    raise UnusableRow(f"message {number} has a content of type {type(content).__name__}, not text")


def _part(part: Any, number: int) -> Piece:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise UnusableRow(f"message {number} has a part of type {type(part).__name__}")
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in ("image", "image_url", "input_image"):
        sources = [part[key] for key in ("image_url", "image", "url", "path") if part.get(key) is not None]
        source = sources[0] if sources else None
        return Place(source.get("url", source) if isinstance(source, dict) else source)
    raise UnusableRow(f"message {number} has a part of the type {kind!r}, which cannot be trained on")


def _learn(message: dict[str, Any], role: str, number: int) -> bool:
    """OpenAI's `weight` and ms-swift's `loss` of an answer."""
    wanted = True
    for key in ("weight", "loss"):
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # True and False among them
            raise UnusableRow(f"message {number} has {key} {value!r}: an answer is learnt (1) or not (0)")
        if role == "assistant":
            wanted = wanted and bool(value)
        elif key == "loss" and value:
            raise UnusableRow(f"message {number} is the {role}'s and has loss {value!r}: answers are learnt")
    return wanted


def _with_system(said: list[Said], given: Any) -> list[Said]:
    system = _said("system", given, 0)
    if said and said[0].role == "system":
        if said[0].text.strip() != system.text.strip():
            raise UnusableRow("it has two system prompts, one among its messages and one beside them")
        return said
    return [system, *said]


def _query_response(row: dict[str, Any]) -> list[Said]:
    queries = [key for key in QUERY if row.get(key) is not None]
    query = row.pop(queries[0]) if queries else None
    if isinstance(row.get("input"), str):
        given = row.pop("input")
        query = f"{query}\n{given}" if query and given else query or given
    history = row.pop("history", None) or []
    if query is None:
        raise UnusableRow("it has neither messages nor a query with its response")
    if not isinstance(history, list) or not all(isinstance(t, list) and len(t) == 2 for t in history):
        raise UnusableRow("its history is no list of [query, response] pairs")
    said = []
    for number, (asked, answered) in enumerate(history):
        said += [_said("user", asked, 2 * number + 1), _said("assistant", answered, 2 * number + 2)]
    return [*said, _said("user", query, len(said) + 1), *_answered(row)]


def _answered(row: dict[str, Any]) -> list[Said]:
    """The answer beside a question; none where a `chosen` one will follow."""
    keys = [key for key in RESPONSE if row.get(key) is not None]
    if len(keys) > 1:
        raise UnusableRow(f"it has both {keys[0]} and {keys[1]}")
    if not keys:
        return []
    return answer(row.pop(keys[0]), keys[0])


def answer(value: Any, key: str) -> list[Said]:
    """An answer given as a text, a message, or a list of messages."""
    if isinstance(value, str):
        return [Said("assistant", (value,), tagged=True)]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise UnusableRow(f"its {key} is a {type(value).__name__}, not an answer")
    return messages(value, key)


def tags_in(said: Said) -> int:
    return sum(part.count(IMAGE_TAG) for part in said.parts if isinstance(part, str)) if said.tagged else 0
