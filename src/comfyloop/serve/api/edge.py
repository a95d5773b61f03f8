"""What every request passes before the routes: counted, its token checked, its body limited. Plain ASGI."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from comfyloop.errors import ComfyLoopError, InvalidInput, TooLarge
from comfyloop.serve.api import sessions
from comfyloop.serve.api.audit_log import WHO
from comfyloop.serve.api.bodies import Characters, Values
from comfyloop.serve.api.errors import error_body
from comfyloop.serve.api.metrics_registry import Metrics

BODY_SECONDS = 120.0
"""A body that is not whole after so long is given up."""
BYTES_PATHS = re.compile(r"/v1/images|/v1/bundles|/v1/datasets/[^/]+/files/.+", re.DOTALL)
"""Where a body is a picture or a file, and no JSON."""
FILE_PATHS = {"/v1/bundles"}
"""Where it may be large, and take its time: it is bounded by `max_file_bytes`, and goes to the disk as it comes."""
FILE_SECONDS = 3600.0
OPEN_PATHS = {"/healthz"}
"""Answered without a token: a container's health check has none."""
SIGN_IN, STATIC = "/sign-in", "/static/"
"""What a person needs before there is a session: the page that asks for the token, and how it looks."""


class Unauthorized(ComfyLoopError):
    status, code = 401, "unauthorized"


class Measured:
    """Count requests and the time to the last byte, by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)


class Tokened:
    """Refuse who does not send `Authorization: Bearer TOKEN` (a WebSocket may send `?token=` instead), nor has the
    session of a browser in which the token was given.

    Args:
        pages: There are pages for people: who opens one without a session is led to where the token is asked for.
    """

    def __init__(self, app: ASGIApp, token: str, *, pages: bool = False) -> None:
        self.app, self.token, self.pages = app, token, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] not in ("http", "websocket")
            or self._is_open(scope["path"])
            or self._is_known(scope)
        ):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4401, "reason": "A token is needed."})
            return
        if self.pages and wants_page(scope):
            query = scope["query_string"].decode("latin-1")
            wanted = quote(scope["path"] + (f"?{query}" if query else ""), safe="")
            await RedirectResponse(f"{SIGN_IN}?next={wanted}", 303)(scope, receive, send)
            return
        error = Unauthorized(
            "This service asks for a token.", "Send it as the header `Authorization: Bearer TOKEN`."
        )
        headers = {"WWW-Authenticate": "Bearer"}
        await JSONResponse(error_body(error), 401, headers)(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in OPEN_PATHS or (self.pages and (path == SIGN_IN or path.startswith(STATIC)))

    def _is_known(self, scope: Scope) -> bool:
        sent, cookies = b"", ""
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                sent = value[7:].strip()
            elif name == b"cookie":
                cookies = f"{cookies};{value.decode('latin-1')}"
        if not sent and scope["type"] == "websocket":
            sent = parse_qs(scope["query_string"]).get(b"token", [b""])[0]
        if sent:
            return self._let_in(scope, "token", hmac.compare_digest(sent, self.token.encode()))
        session = cookie_parser(cookies).get(sessions.cookie(scope), "")
        return self._let_in(scope, "browser", sessions.holds(session, self.token))

    @staticmethod
    def _let_in(scope: Scope, who: str, known: bool) -> bool:
        if known:
            scope[WHO] = who
        return known


def wants_page(scope: Scope) -> bool:
    """Whether a person opens this in a browser, rather than a program asks for data."""
    if scope["method"] not in ("GET", "HEAD") or scope["path"].startswith("/v1/"):
        return False
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


class Limited:
    """Refuse a body over the limits while it is being read, whether its length was announced or not, and one
    that does not come to its end."""

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        max_values: int,
        seconds: float = BODY_SECONDS,
        *,
        max_file_bytes: int = 0,
    ) -> None:
        self.app, self.max_values = app, max_values
        self._json = (max_bytes, seconds)
        self._file = (max_file_bytes or max_bytes, max(seconds, FILE_SECONDS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_file = scope["path"] in FILE_PATHS
        most, seconds = self._file if is_file else self._json
        too_large = _too_large(most, "max_bundle_bytes" if is_file else "max_body_bytes")
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > most:
                body: dict[str, Any] = error_body(too_large)
                await JSONResponse(body, 413, {"Connection": "close"})(scope, receive, send)
                return
        received, whole = 0, False
        is_json = BYTES_PATHS.fullmatch(scope["path"]) is None
        values, characters = Values(self.max_values), Characters()
        deadline = time.monotonic() + seconds

        async def counted() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            # An HTTPException, since FastAPI turns every other one met in a body into a bare 400.
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                sentence = f"The body did not come to its end within {seconds:.0f} seconds."
                raise HTTPException(408, sentence, {"Connection": "close"}) from None
            if message["type"] == "http.request":
                piece = message.get("body", b"")
                whole = not message.get("more_body", False)
                received += len(piece)
                try:
                    if received > most:
                        raise too_large
                    if is_json:
                        values.add(piece)
                        characters.add(piece, last=whole)
                except InvalidInput as error:  # TooLarge among them
                    raise HTTPException(error.status, str(error), {"Connection": "close"}) from None
            return message

        await self.app(scope, counted, send)


def _too_large(most: int, setting: str) -> TooLarge:
    return TooLarge(f"The body is larger than {most} bytes.", f"Send less, or raise the setting {setting}.")
