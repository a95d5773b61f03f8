"""/v1/taste: what a project's picks and ratings say of taste in pictures."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from comfyloop.errors import NotFound
from comfyloop.records import Sha256
from comfyloop.serve.api.common import AskedProject
from comfyloop.serve.api.services import Svc
from comfyloop.taste import Taste

router = APIRouter(tags=["images"])

MOST = 200
"""Pictures of one question."""


class TasteKnown(BaseModel):
    """How much is known of a taste."""

    known: bool
    """Whether comparisons that it was not learnt from are told right more often than by chance."""
    comparisons: int
    win_rate: float | None
    """Share of the comparisons that is told right by what the others say; null under four."""
    sentence: str


class RankedImage(BaseModel):
    sha256: str
    score: float
    """In log odds; all 0 where the taste is not known."""


class TasteRanking(BaseModel):
    taste: TasteKnown
    images: list[RankedImage]
    """The best first; in the order in which they were sent where the taste is not known."""


class ToRank(BaseModel):
    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[Sha256], Field(min_length=1, max_length=MOST)]


@router.get("/v1/taste", summary="Say how well a project's taste in pictures is known")
def get_taste(services: Svc, project: AskedProject) -> TasteKnown:
    """Learnt anew from the newest picks and ratings. By how pictures look: colour, light, contrast, detail, layout."""
    return _told(services.tastes.of(project))


@router.post("/v1/taste/rank", summary="Order pictures by a project's taste")
def rank_images(body: ToRank, services: Svc, project: AskedProject) -> TasteRanking:
    """Pictures that are stored (POST /v1/images), by their hashes."""
    pictures = list(dict.fromkeys(body.images))
    missing = next((sha for sha in pictures if not services.store.blobs.exists(sha)), None)
    if missing is not None:
        raise NotFound(f"There is no image {missing!r}.", "POST /v1/images uploads one.")
    taste, scores = services.tastes.rank(project, pictures)
    images = [RankedImage(sha256=sha, score=round(score, 6)) for sha, score in scores.items()]
    return TasteRanking(taste=_told(taste), images=images)


def _told(taste: Taste) -> TasteKnown:
    return TasteKnown(
        known=taste.known,
        comparisons=taste.choices,
        win_rate=None if taste.win_rate is None else round(taste.win_rate, 4),
        sentence=taste.sentence,
    )
