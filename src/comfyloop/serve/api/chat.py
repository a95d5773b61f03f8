"""POST /v1/chat/completions: OpenAI's chat, answered by a version, recorded as a generation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from comfyloop.errors import ComfyLoopError
from comfyloop.serve.api.answering import Answering
from comfyloop.serve.api.bodies import LargeBodies
from comfyloop.serve.api.chat_request import ChatRequest
from comfyloop.serve.api.errors import error_body
from comfyloop.serve.api.event_stream import EventStream
from comfyloop.serve.api.services import Svc

router = APIRouter(tags=["chat"], route_class=LargeBodies)

_T = TypeVar("_T")


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    response_class=JSONResponse,
    responses={
        200: {
            "description": "OpenAI's chat completion, or its chunks as server-sent events with `stream`. The "
            "headers X-ComfyLoop-Generation and X-ComfyLoop-Version name the record and the version.",
            "content": {"application/json": {}, "text/event-stream": {}},
        }
    },
)
async def chat_completions(body: ChatRequest, request: Request, services: Svc) -> Response:
    """OpenAI's chat completions, with images. Every answer is recorded, for feedback to refer to."""
    answering = await Answering.begin(services, body)
    try:
        if body.stream:
            if not await unless_gone(_opened(answering), request):
                answering.close()
                return Response(status_code=499)
            return _Streaming(answering)
        answer = await unless_gone(answering.whole(), request)
    except BaseException:
        answering.close()
        raise
    answering.close()
    if answer is None:
        return Response(status_code=499)  # nobody reads it
    return JSONResponse(answer, headers=answering.headers)


async def _opened(answering: Answering) -> bool:
    await answering.open()
    return True


async def unless_gone(call: Coroutine[Any, Any, _T], request: Request) -> _T | None:
    """The call's result, or None when the client left first; the engine then stops as well."""
    asking = asyncio.ensure_future(call)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        return None
    finally:
        for task in (asking, leaving):
            task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Streaming(EventStream):
    """Chunks as they come. However it ends, the version is let go, and what was said is recorded."""

    def __init__(self, answering: Answering) -> None:
        super().__init__(_events(answering), answering.headers)
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answering.close()


async def _events(answering: Answering) -> AsyncIterator[bytes]:
    try:
        async for chunk in answering.chunks():
            yield _event(chunk)
        yield b"data: [DONE]\n\n"
    except ComfyLoopError as error:
        # The status line is long gone: the error goes into the stream, where clients look for it.
        yield _event(error_body(error))


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
