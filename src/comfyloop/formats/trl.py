"""TRL's conversational rows: a ``prompt`` that is a list of messages, and the answer beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyloop.formats.messages import Format, Said, messages
from comfyloop.formats.query_response import answered


def _key_of(row: Mapping[str, Any]) -> str | None:
    return "prompt" if isinstance(row.get("prompt"), list) else None


def take(row: dict[str, Any]) -> list[Said]:
    return messages(row.pop("prompt"), "prompt") + answered(row)


FORMAT = Format("prompt and completion", _key_of, take)
