"""/v1/projects: the things that learn."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from comfyloop.errors import InvalidInput, ModelError
from comfyloop.records import Project, ProjectName
from comfyloop.serve.api.services import Svc
from comfyloop.settings import Settings
from comfyloop.stable_diffusion.look import look
from comfyloop.store import projects

router = APIRouter(tags=["projects"])
Prediction = Literal["auto", "epsilon", "v_prediction", "sample"]


class NewProject(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: ProjectName
    base_model: str | None = Field(
        default=None, max_length=1000, description="Default: what this service serves."
    )
    image_model: str | None = Field(
        default=None,
        max_length=1000,
        description="Checkpoint (.safetensors) or diffusers folder on the service's machine whose LoRA is trained "
        "too; empty: the text side alone. Default: the setting `image_model`.",
    )
    image_vae: str = Field(
        default="",
        max_length=1000,
        description="VAE (folder or file) in place of the image model's own. Default: the setting `image_vae`.",
    )
    image_prediction_type: Prediction = Field(
        default="auto",
        description="What its UNet predicts, where it does not say so itself; `auto`: as the setting says.",
    )
    system_prompt: str = Field(default="", max_length=20_000)
    auto: bool = True


class ProjectChange(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image_model: str | None = Field(default=None, max_length=1000)
    image_vae: str | None = Field(default=None, max_length=1000)
    image_prediction_type: Prediction | None = None
    system_prompt: str | None = Field(default=None, max_length=20_000)
    auto: bool | None = None


class ProjectList(BaseModel):
    items: list[Project]


@router.get("/v1/projects", summary="List projects")
def list_projects(services: Svc) -> ProjectList:
    with services.store.read() as conn:
        return ProjectList(items=projects.list_all(conn))


@router.post("/v1/projects", summary="Make a project", status_code=201)
def add_project(body: NewProject, services: Svc) -> Project:
    served = sorted(services.router.engines)
    base_model = body.base_model or services.settings.model
    if base_model not in served:
        raise InvalidInput(
            f"This service does not serve the base model {base_model[:200]!r}.",
            f"It serves: {', '.join(served)}.",
        )
    image_model = services.settings.image_model if body.image_model is None else body.image_model
    project = Project(
        name=body.name,
        base_model=base_model,
        image_model=image_model,
        image_vae=body.image_vae,
        image_prediction_type=body.image_prediction_type,
        system_prompt=body.system_prompt,
        auto=body.auto,
    )
    _check_image_model(project, services.settings)
    with services.store.begin() as conn:
        projects.add(conn, project)
    services.router.refresh()
    return project


@router.get("/v1/projects/{name}", summary="Get a project")
def get_project(name: str, services: Svc) -> Project:
    with services.store.read() as conn:
        return projects.get(conn, name)


@router.patch("/v1/projects/{name}", summary="Change a project")
def change_project(name: str, body: ProjectChange, services: Svc) -> Project:
    """What is left out stays as it is. Which version is live is changed by promote and rollback."""
    with services.store.read() as conn:
        before = projects.get(conn, name)
    changes = body.model_dump(exclude_none=True)
    if any(key.startswith("image") for key in changes):
        _check_image_model(before.model_copy(update=changes), services.settings)
    with services.store.begin() as conn:
        project = projects.update(conn, name, **changes)
    services.router.refresh()
    return project


def _check_image_model(project: Project, settings: Settings) -> None:
    """Raise InvalidInput for an image model of which each run would say that it cannot be trained on."""
    if not project.image_model:
        return
    own = settings.of(project)
    try:
        look(project.image_model, own.image_vae, own.image_prediction)
    except ModelError as error:
        raise InvalidInput(error.message, error.hint) from None
