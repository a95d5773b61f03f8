"""Texts as people are shown them."""

from __future__ import annotations


def in_a_line(text: str, most: int = 100) -> str:
    """In one line, its end left out where it has more than `most` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"
