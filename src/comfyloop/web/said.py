"""POST /v1/said: sentences that the stages say, in a language that the pages know. For the node pack's sidebar."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from comfyloop.web import sentences
from comfyloop.web.language import LANGUAGES

router = APIRouter()


class ToSay(BaseModel):
    model_config = ConfigDict(extra="forbid")
    language: str = Field(max_length=10)
    sentences: list[Annotated[str, Field(max_length=4000)]] = Field(max_length=200)


class Said(BaseModel):
    sentences: list[str]


@router.post("/v1/said")
def said(body: ToSay) -> Said:
    """In the same order; one that is not known, and every one in a language that is not, stays as it is."""
    known = body.language in LANGUAGES
    return Said(sentences=[sentences.say(one, body.language) if known else one for one in body.sentences])
