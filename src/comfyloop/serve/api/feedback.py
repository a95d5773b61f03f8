"""/v1/feedback: what people did with answers and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from comfyloop import capture
from comfyloop.capture.feedback import Receipt
from comfyloop.records import Feedback, ProjectName
from comfyloop.serve.api.bodies import LargeBodies
from comfyloop.serve.api.common import AskedProject, Limit, Seq
from comfyloop.serve.api.services import Services, Svc
from comfyloop.store import feedback
from comfyloop.store.pages import PAGE_BYTES

router = APIRouter(tags=["feedback"], route_class=LargeBodies)


class FeedbackBatch(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: list[Feedback] = Field(min_length=1, max_length=1000)


def _one_or_many(body: Any) -> str:
    many = isinstance(body, FeedbackBatch) or (isinstance(body, dict) and "items" in body)
    return "many" if many else "one"


OneOrMany = Annotated[
    Annotated[Feedback, Tag("one")] | Annotated[FeedbackBatch, Tag("many")], Discriminator(_one_or_many)
]
"""Told apart by `items`, so that an error speaks of what was sent and not of the other form too."""


class FeedbackList(BaseModel):
    items: list[Feedback]
    next_after: int | None = None


class Deleted(BaseModel):
    deleted: int


@router.post("/v1/feedback", summary="Send feedback", status_code=201)
def send_feedback(
    body: OneOrMany,
    services: Svc,
    check: Annotated[bool, Query(description="Only say what could not be stored; store nothing.")] = False,
) -> Receipt:
    """One piece, or `{"items": [...]}`: all of them are stored or none. On the disk when this answers.

    Make the ids on the client: then sending again after a lost answer stores nothing twice.
    """
    items = body.items if isinstance(body, FeedbackBatch) else [body]
    if check:
        capture.feedback.check(services.store, items, services.settings)
        return Receipt(stored=(), duplicates=())
    return store(services, items)


def store(services: Services, items: Sequence[Feedback]) -> Receipt:
    """Take feedback in, and tell who listens."""
    receipt = capture.feedback.submit(services.store, items, services.settings)
    for item in items:
        if item.id in receipt.stored:
            services.controller.events.publish(
                {"type": "feedback.stored", "project": item.project, "id": item.id, "kind": item.kind}
            )
    return receipt


@router.get("/v1/feedback", summary="List feedback, oldest first or newest first")
def list_feedback(
    services: Svc,
    project: AskedProject,
    after: Annotated[Seq, Query(description="`next_after` of the last page.")] = 0,
    kind: Annotated[str | None, Query(description="e.g. `answer_edited`")] = None,
    author: str | None = None,
    limit: Limit = 100,
    newest: Annotated[bool, Query(description="The newest first; `after` is not used then.")] = False,
) -> FeedbackList:
    """`next_after` is null on the last page. A page has fewer than `limit` items where they are large."""
    with services.store.read() as conn:
        if newest:
            latest = feedback.newest(conn, project, kind=kind, author=author, limit=limit)
            return FeedbackList(items=[item for _, item in latest], next_after=None)
        found = feedback.list_by(
            conn, project, after_seq=after, kind=kind, author=author, limit=limit, max_bytes=PAGE_BYTES
        )
        last = found[-1][0] if found else None
        more = last is not None and (
            len(found) == limit or feedback.list_by(conn, project, last, kind=kind, author=author, limit=1)
        )
    return FeedbackList(items=[item for _, item in found], next_after=last if more else None)


@router.get("/v1/feedback/{id}", summary="Get one piece of feedback")
def get_feedback(id: str, services: Svc) -> Feedback:
    """As it was sent."""
    with services.store.read() as conn:
        return feedback.get(conn, id)


@router.delete("/v1/feedback/{id}", summary="Delete one piece of feedback")
def delete_one(id: str, services: Svc) -> Deleted:
    """Versions trained before keep what they learnt; the next snapshot no longer holds it."""
    with services.store.begin() as conn:
        feedback.delete(conn, id)
    return Deleted(deleted=1)


@router.delete("/v1/feedback", summary="Delete everything that an author sent")
def delete_feedback(
    services: Svc,
    author: Annotated[str, Query(min_length=1, max_length=200)],
    project: Annotated[ProjectName | None, Query(description="Default: in all projects.")] = None,
) -> Deleted:
    """Versions trained before keep what they learnt; the next snapshot no longer holds it."""
    if project is not None:
        services.router.project(project)
    with services.store.begin() as conn:
        return Deleted(deleted=feedback.delete_author(conn, project, author))
