"""Accepts feedback: checks it, stores it exactly once, and acknowledges it only when it is on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from comfyloop.errors import ComfyLoopError, Conflict, InvalidInput, NotFound, TooLarge
from comfyloop.records import (
    AnswerEdited,
    Feedback,
    Generation,
    GraphEdited,
    ImagePicked,
    ImageRated,
    PromptEdited,
    Record,
    SampleReviewed,
    SampleUploaded,
    now,
)
from comfyloop.settings import Settings
from comfyloop.store import Store, generations, projects
from comfyloop.store import feedback as stored_feedback

_DEEPEST = 32
"""How deep a workflow's values may be nested; a node's inputs are at 3, and no widget of ComfyUI's goes beyond 8."""
_SHOWN = 5  # refused items named in one message


class Receipt(Record):
    """What is now on the disk. An id sent before is a duplicate: it is stored once."""

    stored: tuple[str, ...]
    duplicates: tuple[str, ...]


def submit(store: Store, items: Sequence[Feedback], settings: Settings) -> Receipt:
    """Store a batch of feedback atomically, and exactly once however often it is sent.

    When this returns, every item is on the disk (fsync). Items that were stored before, by their ids, count
    as duplicates and are not checked again.

    Raises:
        InvalidInput: An item cannot be used: an edit that equals the answer, a sample without an answer, ...
        TooLarge: A text is longer than `max_text_chars`, or the batch than `max_feedback_items`.
        NotFound: An item's project, generation or image does not exist.
        Conflict: An id is known with other content.
        StorageError: The database refused.
    """
    check(store, items, settings)
    received = now()
    with store.begin() as conn:
        stored, duplicates = stored_feedback.add(conn, [_done_by(received, item) for item in items])
    return Receipt(stored=tuple(stored), duplicates=tuple(duplicates))


def _done_by(received: datetime, item: Feedback) -> Feedback:
    """The item with its time limited to the time of arrival, in case the sender's clock is fast, so that later
    items count as newer."""
    return item if item.created_at <= received else item.model_copy(update={"created_at": received})


def check(store: Store, items: Sequence[Feedback], settings: Settings) -> None:
    """Raises what `submit` would raise, without storing anything."""
    if not items:
        raise InvalidInput("The batch has no feedback in it.", "Send at least one item.")
    if len(items) > settings.max_feedback_items:
        raise TooLarge(
            f"The batch has {len(items)} pieces of feedback; {settings.max_feedback_items} are allowed.",
            "Send it in parts; the order does not matter.",
        )
    if refusals := refused(store, items, settings):
        raise _together(refusals, len(items))


def refused(
    store: Store, items: Sequence[Feedback], settings: Settings
) -> list[tuple[int, Feedback, ComfyLoopError]]:
    """The items of a batch that could not be stored, each with its place in the batch and the reason."""
    with store.read() as conn:
        return _check(conn, store, items, settings)


def _check(
    conn: Connection, store: Store, items: Sequence[Feedback], settings: Settings
) -> list[tuple[int, Feedback, ComfyLoopError]]:
    """The items that cannot be stored, each with its place in the batch and the reason."""
    earlier_items = stored_feedback.find_many(conn, [item.id for item in items])
    answers = generations.get_many(conn, sorted({id for item in items if (id := _generation(item))}))
    names = {project.name for project in projects.list_all(conn)}
    stored_images: dict[str, bool] = {}
    refused: list[tuple[int, Feedback, ComfyLoopError]] = []
    for place, item in enumerate(items):
        if item.id in earlier_items:
            if not stored_feedback.same(earlier_items[item.id], item):
                refused.append((place, item, _other_content(item)))
            continue
        earlier_items[item.id] = item
        try:
            if item.project not in names:
                projects.get(conn, item.project)
            _check_lengths(item, settings)
            _check_generation(item, answers)
            _check_content(item)
            if isinstance(item, SampleReviewed) and item.undoes is not None:
                _check_undone(item, item.undoes, earlier_items.get(item.undoes) or _found(conn, item.undoes))
            for sha in dict.fromkeys(_images(item)):
                if sha not in stored_images:
                    stored_images[sha] = store.blobs.exists(sha)
                if not stored_images[sha]:
                    raise NotFound(f"There is no image {sha}.", "Upload it first: POST /v1/images.")
        except (InvalidInput, NotFound, Conflict) as error:
            refused.append((place, item, error))
    return refused


def _check_lengths(item: Feedback, settings: Settings) -> None:
    for name, text in _texts(item):
        if len(text) > settings.max_text_chars:
            raise TooLarge(
                f"Its {name} has {len(text)} characters; {settings.max_text_chars} are allowed.",
                "Shorten it, or raise COMFYLOOP_MAX_TEXT_CHARS.",
            )
    for name, graph in _workflows(item):
        if too_deep(graph, _DEEPEST):
            raise InvalidInput(
                f"Its workflow{name} has values nested more than {_DEEPEST} deep.",
                "Send the workflow as ComfyUI's API form has it, without data put into its values.",
            )
        size = len(json.dumps(graph))
        if size > settings.max_body_bytes:
            raise TooLarge(
                f"Its workflow{name} has {size} bytes; {settings.max_body_bytes} are allowed.",
                "Keep images out of the workflow: upload them and refer to them.",
            )


def _check_form(graph: dict[str, Any]) -> None:
    """A pick's workflow must be one that the gate can draw with: in ComfyUI's API form."""
    if isinstance(graph.get("nodes"), list):
        wrong = "in the form of ComfyUI's page"
    elif isinstance(graph.get("prompt"), dict) and "class_type" not in graph["prompt"]:
        wrong = "wrapped in another object"
    else:
        bad = [key for key, node in graph.items() if not _is_node(node)]
        if not bad:
            return
        wrong = f"not in ComfyUI's API form ({bad[0]!r} has no class_type or no inputs)"
    raise InvalidInput(
        f"Its workflow is {wrong}.",
        'Send {id: {"class_type": ..., "inputs": {...}}}: in ComfyUI, Workflow > Export (API).',
    )


def _is_node(node: Any) -> bool:
    if not isinstance(node, dict):
        return False
    return isinstance(node.get("class_type"), str) and isinstance(node.get("inputs", {}), dict)


def too_deep(value: Any, deepest: int) -> bool:
    """Whether lists and objects are nested more than so deep; level by level, so that no depth is too much to ask."""
    level = [value]
    for _ in range(deepest):
        level = [
            inner
            for held in level
            if isinstance(held, dict | list)
            for inner in (held.values() if isinstance(held, dict) else held)
        ]
        if not level:
            return False
    return any(isinstance(held, dict | list) for held in level)


def _check_generation(item: Feedback, answers: dict[str, Generation]) -> None:
    id = _generation(item)
    if id is None:
        return
    if id not in answers:
        raise NotFound(
            f"There is no generation {id!r}.",
            "Use the `id` of a chat answer of this service; GET /v1/generations lists them.",
        )
    answer = answers[id]
    if answer.project != item.project:
        raise InvalidInput(
            f"The generation {id!r} is of the project {answer.project!r}, not of {item.project!r}.",
            "Send the feedback to the project that answered.",
        )
    if isinstance(item, AnswerEdited) and item.edited == answer.answer:
        raise InvalidInput(
            f"The edit equals the answer of {id!r}.", "An answer used as it is: send kind answer_accepted."
        )


def _check_content(item: Feedback) -> None:
    if isinstance(item, ImagePicked) and set(item.picked) & set(item.over):
        raise InvalidInput(
            "The same image is in `picked` and in `over`.", "An image is either chosen or passed over."
        )
    if isinstance(item, ImagePicked):
        _check_form(item.workflow)
    if isinstance(item, SampleUploaded):
        roles = [message.role for message in item.messages]
        if roles[-1] != "assistant" or "user" not in roles:
            raise InvalidInput(
                f"The sample's messages are {', '.join(roles)}.",
                "A sample has a user's message and ends with the assistant's answer.",
            )


def _check_undone(item: SampleReviewed, undoes: str, undone: Feedback | None) -> None:
    if not isinstance(undone, SampleReviewed) or undone.project != item.project:
        raise NotFound(
            f"The project {item.project!r} has no decision {undoes!r} to take back.",
            "GET /v1/queue/decisions lists them.",
        )


def _found(conn: Connection, id: str) -> Feedback | None:
    return stored_feedback.find_many(conn, [id]).get(id)


def _generation(item: Feedback) -> str | None:
    return None if isinstance(item, GraphEdited | SampleUploaded | SampleReviewed) else item.generation


def _texts(item: Feedback) -> Iterator[tuple[str, str]]:
    match item:
        case AnswerEdited():
            yield "edited", item.edited
        case ImagePicked() | ImageRated():
            yield "prompt", item.prompt
        case PromptEdited():
            yield from (("before", item.before), ("after", item.after), ("node", item.node))
        case GraphEdited():
            yield "aim", item.aim
        case SampleUploaded():
            yield from ((f"message {n}", message.text) for n, message in enumerate(item.messages, 1))
            yield "rejected", item.rejected or ""
        case SampleReviewed():
            yield "text", item.text or ""


def _workflows(item: Feedback) -> Iterator[tuple[str, dict[str, Any]]]:
    match item:
        case GraphEdited():
            yield from ((" before", item.before), (" after", item.after))
        case ImagePicked():
            yield "", item.workflow


def _images(item: Feedback) -> Iterator[str]:
    match item:
        case ImagePicked():
            yield from (*item.picked, *item.over)
        case ImageRated():
            yield item.image
        case PromptEdited():
            yield from (*item.images_before, *item.images_after)
        case GraphEdited():
            yield from item.kept
        case SampleUploaded():
            yield from (image for message in item.messages for image in message.images)


def _other_content(item: Feedback) -> Conflict:
    return Conflict(
        f"The feedback {item.id!r} exists already with other content.",
        "Feedback is never changed: send the new content under a new id.",
    )


def _together(refused: list[tuple[int, Feedback, ComfyLoopError]], size: int) -> ComfyLoopError:
    """One error for a batch: of the kind that all items share, else InvalidInput."""
    if size == 1:
        return refused[0][2]
    kinds = Counter(type(error) for _, _, error in refused)
    kind = next(iter(kinds)) if len(kinds) == 1 else InvalidInput
    lines = [f"Item {place} ({item.id}): {error}" for place, item, error in refused[:_SHOWN]]
    if len(refused) > _SHOWN:
        lines.append(f"... and {len(refused) - _SHOWN} more.")
    return kind(
        f"{len(refused)} of {size} items cannot be stored, so none was. {' '.join(lines)}",
        "Mend or leave out these items and send the batch again.",
    )
