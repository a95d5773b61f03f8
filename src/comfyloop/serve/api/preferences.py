"""/v1/projects/{name}/preferences: what the edits of a project say in words."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, StringConstraints

from comfyloop.errors import Conflict, NotFound
from comfyloop.recall import Preference
from comfyloop.records import Id
from comfyloop.serve.api.recalling import listed
from comfyloop.serve.api.services import Services, Svc
from comfyloop.store import preferences

MOST = 50
"""Texts of people, and preferences that they took away, in one project."""

router = APIRouter(tags=["projects"])


class PreferenceText(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class PreferenceList(BaseModel):
    items: list[Preference]


@router.get("/v1/projects/{name}/preferences", summary="List the preferences of a project in words")
def list_preferences(name: str, services: Svc) -> PreferenceList:
    """Written from edits by rules, each with the edits that show it; a person's own text in its place."""
    return PreferenceList(items=listed(services, services.router.project(name).name))


@router.put("/v1/projects/{name}/preferences/{id}", summary="Write a preference in one's own words")
def put_preference(name: str, id: Id, body: PreferenceText, services: Svc) -> Preference:
    """In place of what the rule of this id wrote, or beside the rules' where no rule is called so."""
    project = services.router.project(name).name
    with services.store.begin() as conn:
        own = preferences.by_id(conn, project)
        if id not in own and len(own) >= MOST:
            raise Conflict(
                f"The project {project!r} has {MOST} preferences in a person's own words already.",
                "Take one away first.",
            )
        preferences.put(conn, project, id, body.text)
    return _find(services, project, id)


@router.delete("/v1/projects/{name}/preferences/{id}", summary="Take a preference away")
def delete_preference(name: str, id: Id, services: Svc) -> PreferenceList:
    """One that a rule wrote stays away, whatever the edits say, until it is written again by hand."""
    project = services.router.project(name).name
    found = _find(services, project, id)
    with services.store.begin() as conn:
        if found.written:
            preferences.put(conn, project, id, None)
        else:
            preferences.delete(conn, project, id)
    return PreferenceList(items=listed(services, project))


def _find(services: Services, project: str, id: str) -> Preference:
    found = {preference.id: preference for preference in listed(services, project)}
    if id not in found:
        there = f"There are: {', '.join(found)}." if found else "There are none yet."
        raise NotFound(f"The project {project!r} has no preference {id!r}.", there)
    return found[id]
