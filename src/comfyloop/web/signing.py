"""/sign-in: where a person gives the token, once for a browser."""

from __future__ import annotations

import hmac
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from comfyloop.serve.api import sessions
from comfyloop.serve.api.edge import SIGN_IN
from comfyloop.serve.api.services import Svc
from comfyloop.web.frame import render, words_for

router = APIRouter()


@router.get(SIGN_IN)
def sign_in(request: Request, services: Svc, next: str = "/") -> Response:
    if not services.settings.token:
        return RedirectResponse(_own(next), 303)
    return render(request, words_for(request), "sign_in.html", 200, {"next": _own(next), "wrong": False})


@router.post(SIGN_IN)
async def signed_in(request: Request, services: Svc) -> Response:
    """Begin a session. Who guesses has no more to go by than with the header that programs send."""
    form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
    token, next = (form.get(name, [""])[0] for name in ("token", "next"))
    known = services.settings.token
    if known and not hmac.compare_digest(token.strip().encode(), known.encode()):
        return render(request, words_for(request), "sign_in.html", 401, {"next": _own(next), "wrong": True})
    response = RedirectResponse(_own(next), 303)
    if known:
        response.set_cookie(
            sessions.cookie(request.scope),
            sessions.begin(known),
            max_age=sessions.SECONDS,
            httponly=True,
            samesite="strict" if request.url.scheme == "https" else "lax",
            secure=request.url.scheme == "https",
        )
    return response


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    response = RedirectResponse(SIGN_IN, 303)
    response.delete_cookie(sessions.cookie(request.scope))
    return response


def _own(address: str) -> str:
    """A page of this service: nobody is led elsewhere by a link to the sign-in page."""
    ours = address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
    return address if ours else "/"
