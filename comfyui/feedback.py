"""Feedback as the service's POST /v1/feedback reads it: dictionaries with an id made here, once."""

from __future__ import annotations

import secrets
import time
from datetime import datetime, timezone
from typing import Any

WRITE_PROMPT = "Write the prompt for an image model.\nBrief: {brief}"
"""Write Prompt's question: the same words in which the service asks it again when it makes samples."""


def new_id(prefix: str = "fb") -> str:
    return f"{prefix}_{int(time.time() * 1000):012x}{secrets.token_hex(8)}"


def item(kind: str, project: str, **fields: Any) -> dict[str, Any]:
    """One piece of feedback; fields that are None are left out."""
    return {
        "id": new_id(),
        "kind": kind,
        "project": project,
        "created_at": datetime.now(timezone.utc).isoformat(),
        **{name: value for name, value in fields.items() if value is not None},
    }


def of_review(
    project: str,
    action: str,
    text: str,
    original: str,
    generation: str = "",
    about: str = "answer",
    **more: Any,
) -> list[dict[str, Any]]:
    """What a review says: `action` is accept, reject or none; `rating` and `comment` may be in `more`.

    `about` is "answer" or "prompt". Without a generation only an edit says something that can be learnt from.
    """
    rating, comment = more.get("rating"), more.get("comment") or None
    items = []
    if action == "accept" and text.strip() != original.strip():
        if generation and about == "answer":
            items.append(item("answer_edited", project, generation=generation, edited=text, comment=comment))
        else:
            items.append(
                item(
                    "prompt_edited",
                    project,
                    generation=generation or None,
                    before=original,
                    after=text,
                    comment=comment,
                )
            )
    elif action == "accept" and generation:
        items.append(item("answer_accepted", project, generation=generation, comment=comment))
    if action == "reject":
        rating = rating or 1
    if rating and generation:
        items.append(item("answer_rated", project, generation=generation, rating=rating, comment=comment))
    return items


def of_pick(
    project: str,
    shown: list[str],
    picked: list[str],
    ratings: dict[str, int],
    prompt: str = "",
    generation: str = "",
    reason: str = "",
    workflow: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """A pick records what it was chosen over; each rated image is a piece of feedback of its own. Images are hashes.

    `workflow` made them; the service draws with it when it compares two versions.
    """
    chosen = list(dict.fromkeys(picked))
    common = {"prompt": prompt, "generation": generation or None, "comment": reason or None}
    items = []
    if chosen:
        over = [sha for sha in dict.fromkeys(shown) if sha not in chosen]
        items.append(item("image_picked", project, picked=chosen, over=over, workflow=workflow, **common))
    items += [item("image_rated", project, image=sha, rating=rating, **common) for sha, rating in ratings.items()]
    return items
