"""/v1/queue: what a person should look at before it is learned, or learned again."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from comfyloop import curate
from comfyloop.capture.feedback import Receipt
from comfyloop.complaints import in_words
from comfyloop.errors import Conflict, InvalidInput, NotFound
from comfyloop.records import (
    MOST_REVIEWED,
    Answered,
    Author,
    Id,
    ProjectName,
    QueueItem,
    SampleReviewed,
    new_id,
)
from comfyloop.serve.api import feedback as told
from comfyloop.serve.api.common import AskedProject, Limit, Seq
from comfyloop.serve.api.services import Services, Svc
from comfyloop.store import feedback

router = APIRouter(tags=["feedback"])

_EVERY = 10**9

State = Literal["waiting", "left_out", "decided"]


class QueueList(BaseModel):
    """A page of one state, and how much there is in all."""

    items: list[QueueItem]
    next_after: str | None = None
    total: int
    filters: dict[str, int]  # filter -> items of that state that it asks about, the most first
    states: dict[State, int]


class ReviewCall(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: Id = Field(
        default_factory=lambda: new_id("fb"),
        description="Made by the client: sending it twice decides once.",
    )
    project: ProjectName | None = None
    author: Author = "local"
    comment: str = Field(default="", max_length=4000)
    decision: Literal["accept", "fix", "reject", "undo"]
    items: list[Id] = Field(default=[], max_length=MOST_REVIEWED)
    text: str | None = Field(default=None, description="`fix`: what the answer, or prompt, is to be.")
    undoes: Id | None = Field(
        default=None, description="`undo`: the decision that is taken back, as a whole."
    )


class ReviewMade(BaseModel):
    decision: SampleReviewed
    stands: bool = Field(description="It was not taken back.")


class DecisionList(BaseModel):
    items: list[ReviewMade]
    next_before: int | None = None


@router.get("/v1/queue", summary="List what a person should look at")
def list_queue(
    services: Svc,
    project: AskedProject,
    state: Annotated[
        State,
        Query(
            description="`waiting`: in doubt, and learned unless a person decides otherwise; `left_out`: by a filter "
            "that a person may overrule; `decided`."
        ),
    ] = "waiting",
    filter: Annotated[str | None, Query(description="Only what this filter, or `live`, asks about.")] = None,
    after: Annotated[str | None, Query(description="`next_after` of the last page.")] = None,
    limit: Limit = 50,
) -> QueueList:
    """First what most filters are unsure of, what people here are likeliest to refuse, and what the live version does
    worst on; what was decided is listed newest first. A decision takes effect in the next snapshot."""
    every = services.controller.queue(project)
    there = [item for item in every if item.state == state]
    names = Counter(reason.filter for item in there for reason in item.reasons)
    if filter is not None:
        there = [item for item in there if any(reason.filter == filter for reason in item.reasons)]
    start = next((place for place, item in enumerate(there, 1) if item.id == after), 0)
    page = there[start : start + limit]
    states = Counter(item.state for item in every)
    return QueueList(
        items=page,
        next_after=page[-1].id if start + limit < len(there) else None,
        total=len(there),
        filters=dict(names.most_common()),
        states={"waiting": states["waiting"], "left_out": states["left_out"], "decided": states["decided"]},
    )


@router.get("/v1/queue/decisions", summary="List what was decided, newest first")
def list_decisions(
    services: Svc, project: AskedProject, before: Annotated[Seq | None, Query()] = None, limit: Limit = 50
) -> DecisionList:
    """Any that stands can be taken back, also by somebody else."""
    kind = "sample_reviewed"
    with services.store.read() as conn:
        page = feedback.newest(conn, project, before_seq=before, kind=kind, limit=limit)
        since = page[-1][0] - 1 if page else 0
        later = feedback.of_kinds(conn, project, [kind], after_seq=since, limit=_EVERY)
    made = [item for _, item in reversed(later) if isinstance(item, SampleReviewed)]
    standing = {decision.id for decision in curate.standing(made)}
    items = [
        ReviewMade(decision=item, stands=item.id in standing)
        for _, item in page
        if isinstance(item, SampleReviewed)
    ]
    return DecisionList(items=items, next_before=page[-1][0] if len(page) == limit else None)


@router.get("/v1/queue/{id}", summary="Get one item of the review queue")
def get_item(id: Id, services: Svc, project: AskedProject) -> QueueItem:
    """As it is now: waiting, left out or decided."""
    items = _items(services, project)
    if id not in items:
        raise _unknown(project, [id])
    return items[id]


@router.post(
    "/v1/queue/decisions", summary="Decide what becomes of items of the review queue", status_code=201
)
def decide(body: ReviewCall, services: Svc) -> Receipt:
    """One decision, about one item or many: it is stored as feedback, on the disk when this answers, and can be taken
    back as a whole. What asked about an item then does not ask again about the same content.

    - `accept`: it is learned as it is, also what a filter left out.
    - `fix`: `text` is learned in its place, and preferred to what was there.
    - `reject`: it is not learned, whoever sends it.
    - `undo`: an earlier decision is taken back.
    """
    project = services.router.project(body.project or services.settings.project).name
    with services.store.read() as conn:
        earlier = feedback.find_many(conn, [body.id]).get(body.id)
    if earlier is not None:
        if not isinstance(earlier, SampleReviewed) or not _same(earlier, body, project):
            raise Conflict(
                f"The feedback {body.id!r} exists already with other content.",
                "Send another decision under a new id.",
            )
        return Receipt(stored=(), duplicates=(body.id,))
    asked = _items(services, project) if body.items else {}
    if unknown := [id for id in body.items if id not in asked]:
        raise _unknown(project, unknown)
    items = tuple(
        Answered(item=id, filters=tuple(reason.filter for reason in asked[id].reasons))
        for id in dict.fromkeys(body.items)
    )
    given = body.model_dump(exclude={"project", "items"})
    try:
        decision = SampleReviewed(project=project, items=items, **given)
    except ValidationError as error:
        raise InvalidInput(
            f"The decision cannot be used: {in_words(error.errors(), 'the decision')}."
        ) from None
    return told.store(services, [decision])


def _items(services: Services, project: str) -> dict[str, QueueItem]:
    return {item.id: item for item in services.controller.queue(project)}


def _unknown(project: str, ids: list[str]) -> NotFound:
    more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    return NotFound(
        f"The review queue of {project!r} has no item {ids[0]!r}{more}.", "GET /v1/queue lists what there is."
    )


def _same(earlier: SampleReviewed, body: ReviewCall, project: str) -> bool:
    return (
        (earlier.project, earlier.decision, earlier.text, earlier.undoes)
        == (project, body.decision, body.text, body.undoes)
    ) and [item.item for item in earlier.items] == list(dict.fromkeys(body.items))
