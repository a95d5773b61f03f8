"""/queue: what a person should look at before it is learned. The items are the API's own; the page only shows them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from comfyloop.web.frame import Asked
from comfyloop.web.sentences import forms

router = APIRouter()


@router.get("/queue")
def show_queue(
    desk: Asked,
    state: Literal["waiting", "left_out", "decided"] = "waiting",
    view: Literal["one", "grid"] = "one",
    filter: Annotated[str, Query(max_length=100)] = "",
) -> HTMLResponse:
    return desk.show(
        "queue.html",
        "queue",
        state=state,
        view=view,
        filter=filter,
        said=desk.words.of("queue.js."),
        sentences=forms(desk.words.language),
    )
