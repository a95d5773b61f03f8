"""What went wrong, as a page, where a person opened one; programs are answered in JSON as before."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from comfyloop.errors import ComfyLoopError
from comfyloop.serve.api.edge import wants_page
from comfyloop.web.frame import fault_of, render, words_for

Handler = Callable[[Request, Any], Response | Awaitable[Response]]


def install(app: FastAPI) -> None:
    """Put pages before the answers that the application has for errors so far."""
    for kind in (ComfyLoopError, HTTPException, RequestValidationError, ValidationError, Exception):
        app.add_exception_handler(kind, _as_page(app.exception_handlers[kind]))


def _as_page(otherwise: Handler) -> Handler:
    async def handle(request: Request, error: Exception) -> Response:
        answer = otherwise(request, error)
        response = await answer if inspect.isawaitable(answer) else answer
        return _page(request, error, response.status_code) if wants_page(request.scope) else response

    return handle


def _page(request: Request, error: Exception, status: int) -> Response:
    words = words_for(request)
    kind = "missing" if status == 404 else "refused" if status < 500 else "broken"
    sentence, hint = words(f"fault.{kind}.sentence"), words(f"fault.{kind}.hint")
    if isinstance(error, ComfyLoopError):
        sentence, hint = fault_of(error, words)
    told = {"status": status, "title": words(f"fault.{kind}.title"), "sentence": sentence, "hint": hint}
    return render(request, words, "fault.html", status, told)
