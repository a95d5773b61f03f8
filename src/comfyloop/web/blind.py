"""/versions/blind: which of two answers is better, without knowing whose they are."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from comfyloop.records import BASE
from comfyloop.serve.api.votes import voted
from comfyloop.serve.routing.names import version_name
from comfyloop.web.frame import Asked
from comfyloop.web.versions import Pair, asked_pair

router = APIRouter()


@router.get("/versions/blind")
def blind(
    desk: Asked,
    a: Annotated[int, Query(ge=0, lt=2**31)] = BASE,
    b: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
) -> HTMLResponse:
    """The questions on which the two answered differently; more can be asked on the page."""
    pair: Pair = asked_pair(desk, a, b)
    told = [
        {
            "question": side.item.question,
            "images": list(side.item.images[:3]),
            "wanted": side.item.reference,
            "answers": [side.first, side.second],
        }
        for side in pair.sides
        if side.first.strip() != side.second.strip()
    ]
    return desk.show(
        "blind.html",
        "versions",
        pair=pair,
        told=told,
        models=(version_name(desk.project.name, pair.first), version_name(desk.project.name, pair.second)),
        votes=voted(desk.services, desk.project.name),
    )
