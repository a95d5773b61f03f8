"""GET /v1/audit: who changed what through the API, and when; kept as lines of `audit.jsonl` in the home directory.

What people say of answers and pictures is feedback, which carries its author and is kept: it is not told twice.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from comfyloop.serve.api.audit_log import WHO, AuditLine, AuditLog
from comfyloop.serve.api.services import Svc

router = APIRouter(tags=["health"])

CHANGING = {"POST", "PUT", "PATCH", "DELETE"}
SAID_ELSEWHERE = re.compile(
    r"/v1/(chat/completions|feedback|images|busy|graph-edits|queue/decisions|taste/rank|datasets/[^/]+/preview|votes|said)"
    r"|/v1/(datasets/[^/]+/files/.+|versions/[^/]+/bundle/contents)",
    re.DOTALL,
)
"""Posted without changing anything, or kept as a record of its own."""
_LONGEST = 300


class AuditPage(BaseModel):
    items: list[AuditLine]


class Audited:
    """Write down each request that changes something. Plain ASGI, outside of who checks the token."""

    def __init__(self, app: ASGIApp, audit: AuditLog) -> None:
        self.app, self.audit = app, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in CHANGING:
            await self.app(scope, receive, send)
            return
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            if not SAID_ELSEWHERE.fullmatch(scope["path"]):
                await run_in_threadpool(self.audit.add, _line(scope, status))


def _line(scope: Scope, status: int) -> AuditLine:
    asked = parse_qsl(scope["query_string"].decode("utf-8", "replace"), keep_blank_values=True)
    query = "&".join(f"{name}={value}" for name, value in asked if name != "token")
    path = scope["path"] + (f"?{query}" if query else "")
    return AuditLine(
        at=datetime.now(UTC),
        who=scope.get(WHO, ""),
        address=(scope.get("client") or ("", 0))[0],
        call=f"{scope['method']} {getattr(scope.get('route'), 'path', scope['path'][:_LONGEST])}",
        path=path[:_LONGEST],
        status=status,
    )


@router.get("/v1/audit", summary="Who changed what, the newest first")
def audit(services: Svc, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> AuditPage:
    """What was asked of the API that changes something, and what became of it; feedback is kept as feedback."""
    return AuditPage(items=services.audit.newest(limit))
