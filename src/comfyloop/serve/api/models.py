"""GET /v1/models: what can be asked."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from comfyloop import integrity
from comfyloop.records import BASE, VersionState
from comfyloop.serve.api.services import Services, Svc
from comfyloop.serve.routing.names import ModelName, version_name
from comfyloop.store import versions

router = APIRouter(tags=["chat"])


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "comfyloop"
    project: str
    version: int
    state: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def _models(services: Services) -> list[Model]:
    models: list[Model] = []
    for project in services.router.projects:
        made = int(project.created_at.timestamp())
        with services.store.read() as conn:
            found = versions.names(conn, project.name)
        live = project.live
        models.append(Model(id=project.name, created=made, project=project.name, version=live, state="live"))
        candidates = [v for v in found if v.state is VersionState.CANDIDATE]
        if candidates:
            newest = candidates[0]
            models.append(
                Model(
                    id=f"{project.name}@candidate",
                    created=int(newest.created_at.timestamp()),
                    project=project.name,
                    version=newest.number,
                    state=newest.state,
                )
            )
        models.append(
            Model(
                id=version_name(project.name, BASE),
                created=made,
                project=project.name,
                version=BASE,
                state="live" if live == BASE else "base",
            )
        )
        models.extend(
            Model(
                id=version_name(project.name, version.number),
                created=int(version.created_at.timestamp()),
                project=project.name,
                version=version.number,
                state=version.state,
            )
            for version in found
            if not integrity.pruned(integrity.folder(services.settings.home, project.name, version.number))
        )
    return models


@router.get("/v1/models", summary="List the models that can be asked")
def list_models(services: Svc) -> ModelList:
    """Every project (its live version), its base model, its candidate and its versions."""
    return ModelList(data=_models(services))


@router.get("/v1/models/{model}", summary="Get one model")
def get_model(model: str, services: Svc) -> Model:
    name = ModelName.parse(model)
    project = services.router.project(name.project)
    number = services.router.number_of(name)
    state, made = "base", project.created_at
    if number != BASE:
        with services.store.read() as conn:
            version = versions.get(conn, project.name, number)
        state, made = str(version.state), version.created_at
    elif project.live == BASE:
        state = "live"
    return Model(id=model, created=int(made.timestamp()), project=project.name, version=number, state=state)
