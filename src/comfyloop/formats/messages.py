"""``messages`` of role and content, as ms-swift, OpenAI and TRL write them.

A content is a text or a list of parts. This applies to messages everywhere: a role may also be called ``from`` and
a content ``value``, and an object may hold an exchange, ``{"human": ..., "assistant": ...}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from comfyloop.formats.record import IMAGE_TAG, UnusableRow
from comfyloop.modalities import of_type

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
_TOOLS = ("tool", "function", "function_call", "tool_call", "tool_response", "observation")
_UNLEARNABLE = (  # what would be lost of a message
    "tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning", "thinking", "refusal", "audio",
)  # fmt: skip
_PAIRED = ("system", "user", "human", "assistant", "gpt", "bot")
_NAMES = ("role", "from", "content", "value", "weight", "loss", "name", *_UNLEARNABLE)


@dataclass(frozen=True)
class PictureSlot:
    """Where a picture goes: its own source, or None for the next of the row's list."""

    source: Any = None


Piece = str | PictureSlot


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
            pairs = [key for key in _PAIRED if key in message]
            if not pairs:
                raise UnusableRow(f"message {number} has no role")
            said += [said_by(key, message[key], number) for key in pairs]
    return said


def _message(message: dict[str, Any], number: int) -> Said:
    for key in _UNLEARNABLE:
        if message.get(key):
            raise UnusableRow(f"message {number} has {key}, which cannot be trained on")
    for key, value in message.items():
        if key not in _NAMES and value not in (None, "", [], {}):
            raise UnusableRow(f"message {number} has the key {key}, whose meaning would be lost")
    said = said_by(
        message.get("role", message.get("from")), message.get("content", message.get("value")), number
    )
    return Said(said.role, said.parts, said.tagged, _learn(message, said.role, number))


def said_by(role: Any, content: Any, number: int) -> Said:
    own_role = ROLES.get(role.lower()) if isinstance(role, str) else None
    if own_role is None:
        tools = ": tool calls cannot be trained on" if role in _TOOLS else ""
        raise UnusableRow(
            f"message {number} has the role {role!r}, which is none of {', '.join(ROLES)}{tools}"
        )
    if isinstance(content, str):
        return Said(own_role, (content,), tagged=True)
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list) and content:
        return Said(own_role, tuple(_part(part, number) for part in content), tagged=False)
    raise UnusableRow(f"message {number} has a content of type {type(content).__name__}, not text")


def _part(part: Any, number: int) -> Piece:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise UnusableRow(f"message {number} has a part of type {type(part).__name__}")
    modality = of_type(part.get("type"))
    if modality is not None:
        with suppress(KeyError, TypeError, ValueError):
            held = modality.read(part)
            return PictureSlot(held) if modality.holds_bytes else str(held)
    raise UnusableRow(
        f"message {number} has a part of the type {part.get('type')!r}, which cannot be trained on"
    )


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


def answer(value: Any, key: str) -> list[Said]:
    """An answer given as a text, a message, or a list of messages."""
    if isinstance(value, str):
        return [Said("assistant", (value,), tagged=True)]
    if isinstance(value, dict):
        if not value.keys() & {"role", "from", *_PAIRED}:
            raise UnusableRow(
                f"its {key} is an object, not a text: write it as JSON in a text to have that learnt"
            )
        value = [value]
    if not isinstance(value, list):
        raise UnusableRow(f"its {key} is a {type(value).__name__}, not an answer")
    if not value:
        raise UnusableRow(f"its {key} is an empty list")
    if all(isinstance(item, str) for item in value):
        raise UnusableRow(
            f"its {key} is a list of {len(value)} text{'s' * (len(value) != 1)}: a row compares one answer with "
            "one, so write a text, and a row for each"
        )
    try:
        return messages(value, key)
    except UnusableRow as error:
        raise UnusableRow(f"in its {key}, {error}") from None


def tags_in(said: Said) -> int:
    return sum(part.count(IMAGE_TAG) for part in said.parts if isinstance(part, str)) if said.tagged else 0


# --- the format ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A format of conversations. Each is declared in its own module."""

    name: str
    key_of: Callable[[Mapping[str, Any]], str | None]  # the key by which a row is known to be written so
    take: Callable[[dict[str, Any]], list[Said]]  # takes the conversation out of a row; raises UnusableRow


def first_of(*keys: str) -> Callable[[Mapping[str, Any]], str | None]:
    """The first of these keys that has a value in a row."""
    return lambda row: next((key for key in keys if row.get(key) is not None), None)


FORMAT = Format("messages", first_of("messages"), lambda row: messages(row.pop("messages"), "messages"))
