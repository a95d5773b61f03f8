"""``conversations`` of from and value, as ShareGPT and LLaVA write them, and ms-swift's older ``conversation``."""

from __future__ import annotations

from typing import Any

from comfyloop.formats.messages import Format, Said, first_of, messages

_key_of = first_of("conversations", "conversation")


def take(row: dict[str, Any]) -> list[Said]:
    key = _key_of(row) or "conversations"
    return messages(row.pop(key), key)


FORMAT = Format("conversations", _key_of, take)
