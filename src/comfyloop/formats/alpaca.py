"""Alpaca: an ``instruction``, the ``input`` that it is about, and the ``output``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyloop.formats.messages import Format, Said
from comfyloop.formats.query_response import exchange, question


def _key_of(row: Mapping[str, Any]) -> str | None:
    """A row with an ``input`` is of this format, whatever the key of its instruction."""
    return next((key for key in ("input", "instruction") if isinstance(row.get(key), str)), None)


def take(row: dict[str, Any]) -> list[Said]:
    instruction = question(row)
    input_text = row.pop("input") if isinstance(row.get("input"), str) else None
    prompt = f"{instruction}\n{input_text}" if instruction and input_text else instruction or input_text or ""
    return exchange(row, prompt)


FORMAT = Format("Alpaca", _key_of, take)
