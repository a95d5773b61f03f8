"""Errors as JSON: {"error": {"message", "hint", "code", "type", "param"}}, a superset of OpenAI's form.

Until the release after the next the hint also stands under its old name, `mend`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from comfyloop.complaints import Complaint, complaints
from comfyloop.errors import ComfyLoopError, InvalidInput, NotFound

log = logging.getLogger(__name__)

SHOWN = 5
"""So many complaints about one request are told."""


class ErrorDetail(BaseModel):
    message: str = Field(description="What is wrong and how to mend it, in words.")
    hint: str = Field(default="", description="How to mend it alone; empty when the message says it.")
    mend: str = Field(default="", description="The hint under its old name.", deprecated=True)
    code: str = Field(description="A word for programs, e.g. `not_found`.")
    type: str = Field(description="OpenAI's kind of error, e.g. `invalid_request_error`.")
    param: str | None = Field(default=None, description="The field that is wrong, where it is one.")


class ErrorBody(BaseModel):
    error: ErrorDetail


def _kind(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def error_body(error: ComfyLoopError, param: str | None = None) -> dict[str, Any]:
    return _body(error.status, str(error), error.hint, error.code, param)


def _body(status: int, message: str, hint: str, code: str, param: str | None = None) -> dict[str, Any]:
    told = {
        "message": message,
        "hint": hint,
        "mend": hint,
        "code": code,
        "type": _kind(status),
        "param": param,
    }
    return {"error": told}


def error_response(error: ComfyLoopError, param: str | None = None) -> JSONResponse:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return JSONResponse(error_body(error, param), error.status, headers)


_HTTP_CODES = {401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def validation_sentence(errors: Sequence[Any], sent: Any = None) -> tuple[str, str | None]:
    """Pydantic's list of errors as sentences, and the first field's name.

    Args:
        sent: What was validated, so that the fields are named as they stand in it.
    """
    return _told(complaints(errors, sent))


def _request_sentence(errors: Sequence[Any], body: Any) -> tuple[str, str | None]:
    """The same for FastAPI's errors, whose places begin with where a value came from."""
    within = [{**error, "loc": error["loc"][1:]} for error in errors]
    of_body = [inner for error, inner in zip(errors, within, strict=True) if error["loc"][0] == "body"]
    others = [inner for error, inner in zip(errors, within, strict=True) if error["loc"][0] != "body"]
    return _told(complaints(of_body, body) + complaints(others))


def _told(found: Sequence[Complaint]) -> tuple[str, str | None]:
    sentences = [f"{place or 'The body'}: {what}." for place, what in found[:SHOWN]]
    more = len(found) - SHOWN
    first = next((complaint.place for complaint in found if complaint.place), None)
    return " ".join(sentences) + (f" And {more} more." if more > 0 else ""), first


def install(app: FastAPI) -> None:
    """Answer every kind of failure in the one form."""

    @app.exception_handler(ComfyLoopError)
    async def _known(request: Request, error: ComfyLoopError) -> JSONResponse:
        if error.status >= 500:
            log.warning("%s %s: %s", request.method, request.url.path, error)
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        details = error.errors()
        if any(detail["type"] == "json_invalid" for detail in details):
            reason = details[0].get("ctx", {}).get("error", "")
            place = details[0]["loc"][-1]
            broken = InvalidInput(f"The body is not valid JSON: {reason} at character {place}.")
            return error_response(broken)
        sent = request.headers.get("content-type", "")
        if tuple(details[0]["loc"]) == ("body",) and "json" not in sent and details[0]["input"] is not None:
            hint = "Send JSON with the header `Content-Type: application/json`."
            return error_response(InvalidInput(f"The body was sent as {sent[:80] or 'no type'!r}.", hint))
        sentence, param = _request_sentence(details, error.body)
        return error_response(InvalidInput(sentence), param)

    @app.exception_handler(ValidationError)
    async def _not_a_record(request: Request, error: ValidationError) -> JSONResponse:
        sentence, param = validation_sentence(error.errors())
        return error_response(InvalidInput(sentence), param)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404 and error.detail == "Not Found":
            return error_response(
                NotFound(f"There is nothing at {request.url.path}.", "GET /docs lists the routes.")
            )
        message = str(error.detail)
        if error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}. GET /docs lists the routes."
        code = _HTTP_CODES.get(error.status_code, "invalid_input")
        return JSONResponse(
            _body(error.status_code, message, "", code), error.status_code, getattr(error, "headers", None)
        )

    @app.exception_handler(Exception)
    async def _unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        message = (
            f"ComfyLoop failed in a way that was not foreseen ({type(error).__name__}). Its log says more."
        )
        return JSONResponse(_body(500, message, "", "error"), 500)


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What was sent cannot be used; the sentence says why."},
    "5XX": {"model": ErrorBody, "description": "The engine, the disk or the database is not there now."},
}
"""What every route may answer besides its result, for the OpenAPI."""
