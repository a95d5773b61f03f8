"""/v1/forget: taking back what a person did."""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from comfyloop.records import Forgotten, ProjectName
from comfyloop.serve.api.services import Svc

router = APIRouter(tags=["feedback"])

_Name = Annotated[str, Field(min_length=1, max_length=200)]


class Forget(BaseModel):
    """Exactly one of `author`, `feedback` and `sample`."""

    model_config = ConfigDict(extra="forbid")
    project: ProjectName | None = None
    author: _Name | None = Field(default=None, description="All that this author sent.")
    feedback: _Name | None = Field(default=None, description="The id of one piece of feedback.")
    sample: _Name | None = Field(default=None, description="The id of a training sample.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(given is not None for given in (self.author, self.feedback, self.sample)) != 1:
            raise ValueError("give one of author, feedback and sample")
        return self


@router.post("/v1/forget", summary="Take feedback back, and what learned from it")
def forget(body: Forget, services: Svc) -> Forgotten:
    """Deletes it, names the versions that carry it and withdraws them. Where the live version does, the newest one
    before it that does not takes its place, or the base model, and a turn begins that learns the rest anew."""
    project = services.router.project(body.project or services.settings.project).name
    return services.controller.forget(
        project, author=body.author, feedback_id=body.feedback, sample=body.sample
    )
