"""/v1/votes: which version's answers people prefer without knowing whose they are."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from comfyloop.errors import NotFound
from comfyloop.gate.statistics import wilson
from comfyloop.records import BASE, Id, ProjectName
from comfyloop.serve.api.common import AskedProject
from comfyloop.serve.api.services import Services, Svc
from comfyloop.store import versions, votes
from comfyloop.store.votes import Tally

router = APIRouter(tags=["versions"])

Number = Annotated[int, Field(ge=0, lt=2**31)]


class Vote(BaseModel):
    """Of two versions, whose answer was better."""

    model_config = ConfigDict(extra="forbid")
    id: Id = Field(
        default_factory=lambda: f"vote_{uuid.uuid4().hex}",
        description="Made by the client, so that a vote that is sent twice counts once.",
    )
    project: ProjectName | None = None
    versions: tuple[Number, Number]
    chosen: Number | None = Field(description="One of the two; null: they are as good.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.versions[0] == self.versions[1]:
            raise ValueError("versions are two different ones")
        if self.chosen is not None and self.chosen not in self.versions:
            raise ValueError("chosen is one of versions, or null")
        return self


class Standing(BaseModel):
    """How a version does against all others that it was voted on with."""

    version: int
    won: int
    lost: int
    equal: int
    share: float | None
    """Of the votes that were decided, those for it; null: none was."""
    low: float
    high: float
    """Where the true share lies with 95% confidence (Wilson)."""


class Votes(BaseModel):
    standings: list[Standing]
    """The surest first: by the lower bound."""
    pairs: list[Tally]


class Counted(BaseModel):
    id: str
    new: bool


@router.get("/v1/votes", summary="How versions stand by blind votes")
def list_votes(services: Svc, project: AskedProject) -> Votes:
    """A version is ranked by the least share of votes that it has with confidence, not by the share that it happened
    to get: three of three says less than ninety of a hundred."""
    return voted(services, project)


@router.post("/v1/votes", summary="Say which version's answer was better", status_code=201)
def post_vote(body: Vote, services: Svc) -> Counted:
    """Nothing else follows from it: votes promote nothing by themselves."""
    project = services.router.project(body.project or services.settings.project).name
    with services.store.begin() as conn:
        for number in body.versions:
            if number != BASE:
                versions.get(conn, project, number)
        new = votes.add(conn, project, body.id, body.versions, body.chosen)
    return Counted(id=body.id, new=new)


@router.delete("/v1/votes/{id}", summary="Take a vote back")
def delete_vote(id: str, services: Svc, project: AskedProject) -> Votes:
    with services.store.begin() as conn:
        if not votes.delete(conn, project, id):
            raise NotFound(
                f"There is no vote {id[:100]!r} in {project!r}.", "GET /v1/votes counts those there are."
            )
    return voted(services, project)


def voted(services: Services, project: str) -> Votes:
    with services.store.read() as conn:
        tallies = votes.tallies(conn, project)
    return Votes(standings=standings(tallies), pairs=tallies)


def standings(tallies: Iterable[Tally]) -> list[Standing]:
    won: Counter[int] = Counter()
    lost: Counter[int] = Counter()
    equal: Counter[int] = Counter()
    for tally in tallies:
        won[tally.first] += tally.for_first
        lost[tally.first] += tally.for_second
        won[tally.second] += tally.for_second
        lost[tally.second] += tally.for_first
        equal[tally.first] += tally.equal
        equal[tally.second] += tally.equal
    found = []
    for number in {*won, *lost, *equal}:
        decided = won[number] + lost[number]
        low, high = wilson(won[number], decided)
        share = won[number] / decided if decided else None
        found.append(
            Standing(
                version=number,
                won=won[number],
                lost=lost[number],
                equal=equal[number],
                share=share,
                low=low,
                high=high,
            )
        )
    return sorted(found, key=lambda one: (-one.low, -one.high, -one.version))
