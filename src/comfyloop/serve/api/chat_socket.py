"""WS /v1/chat/completions: many chats over one connection, for a client that keeps it open.

The client sends requests, each with an id of its choice, and may take one back::

    {"request_id": "a", "model": "acme", "messages": [...], ...}     as POST /v1/chat/completions
    {"request_id": "a", "cancel": true}

and gets, of each request in order and of different ones as they come::

    {"request_id": "a", "type": "start", "generation": "gen-...", "version": "acme@17", "examples": []}
    {"request_id": "a", "type": "chunk", "chunk": {...}}             OpenAI's chat.completion.chunk
    {"request_id": "a", "type": "done"} or "cancelled", or
    {"request_id": "a", "type": "error", "error": {...}}             as in HTTP; a request over the limit too
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any

from fastapi import APIRouter, WebSocket
from fastapi.websockets import WebSocketDisconnect
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from comfyloop.errors import ComfyLoopError, Conflict, InvalidInput, QueueFull, TooLarge
from comfyloop.serve.api import bodies
from comfyloop.serve.api.answering import Answering
from comfyloop.serve.api.chat_request import ChatRequest
from comfyloop.serve.api.errors import error_body, validation_sentence
from comfyloop.serve.api.services import Services, Svc, one_of
from comfyloop.settings import Settings

log = logging.getLogger(__name__)
router = APIRouter(tags=["chat"])

MOST_AT_ONCE = 32
"""Requests of one connection that are answered at a time."""
MOST_CONNECTIONS = 64
LONGEST_ID = 128


@router.websocket("/v1/chat/completions")
async def chat_socket(socket: WebSocket, services: Svc) -> None:
    async with one_of(socket, services, "chat", MOST_CONNECTIONS):
        await socket.accept()
        await _Conversation(socket, services).run()


class _Conversation:
    """One connection and the requests that are answered over it."""

    def __init__(self, socket: WebSocket, services: Services) -> None:
        self._socket = socket
        self._services = services
        self._sending = asyncio.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._bytes = 0  # of the requests that are being answered

    async def run(self) -> None:
        try:
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._take(
                    message.get("text") or (message.get("bytes") or b"").decode("utf-8", "replace")
                )
        except (WebSocketDisconnect, RuntimeError):
            return  # it went while we spoke
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _take(self, text: str) -> None:
        """Start or cancel what a message asks for; what is wrong with it is told, and the connection stays."""
        request_id: str | None = None
        sent: dict[str, Any] = {}
        try:
            request_id, sent = await _parse(text, self._services.settings)
            if "cancel" in sent:
                task = self._running.get(request_id)
                if task is not None:
                    task.cancel()
                return
            if request_id in self._running:
                raise Conflict(
                    f"The request {request_id!r} is still being answered.", "Use another request_id."
                )
            if len(self._running) >= MOST_AT_ONCE:
                raise QueueFull(
                    f"{MOST_AT_ONCE} requests of this connection are being answered.", retry_after=1
                )
            if self._bytes + len(text) > self._services.settings.max_body_bytes:
                raise QueueFull(
                    "The requests of this connection are as large as one body may be.", retry_after=1
                )
            body = ChatRequest.model_validate({**sent, "stream": True})
        except ValidationError as error:
            sentence, param = validation_sentence(error.errors(), sent)
            await self._tell(request_id, type="error", **error_body(InvalidInput(sentence), param))
        except ComfyLoopError as error:
            await self._tell(request_id, type="error", **error_body(error))
        else:
            self._bytes += len(text)
            task = asyncio.create_task(self._answer(request_id, body))
            self._running[request_id] = task
            task.add_done_callback(lambda _: self._ended(len(text)))

    def _ended(self, size: int) -> None:
        self._bytes -= size

    async def _answer(self, request_id: str, body: ChatRequest) -> None:
        try:
            answering = await Answering.begin(self._services, body)
            try:
                await answering.open()
                await self._tell(request_id, type="start", **answering.begun)
                async for chunk in answering.chunks():
                    await self._tell(request_id, type="chunk", chunk=chunk)
            finally:
                answering.close()
            last: dict[str, Any] = {"type": "done"}
        except asyncio.CancelledError:
            last = {"type": "cancelled"}
        except ComfyLoopError as error:
            last = {"type": "error", **error_body(error)}
        except (WebSocketDisconnect, RuntimeError):
            return
        except Exception as error:
            log.error("A chat over a WebSocket failed", exc_info=error)
            unknown = ComfyLoopError(
                f"ComfyLoop failed in a way that was not foreseen ({type(error).__name__})."
            )
            last = {"type": "error", **error_body(unknown)}
        finally:
            self._running.pop(request_id, None)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._tell(request_id, **last)

    async def _tell(self, request_id: str | None, **frame: Any) -> None:
        text = json.dumps({"request_id": request_id, **frame}, ensure_ascii=False, separators=(",", ":"))
        async with self._sending:
            await self._socket.send_text(text)


async def _parse(text: str, settings: Settings) -> tuple[str, dict[str, Any]]:
    """The id of a message and the rest of it."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > settings.max_body_bytes:
        raise TooLarge(f"The message is longer than {settings.max_body_bytes} bytes.", "Send less.")
    await bodies.check_in_pieces(data, settings.max_json_values)
    try:
        sent = await run_in_threadpool(bodies.parse, data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"The message is not valid JSON ({error}).") from None
    if not isinstance(sent, dict):
        raise InvalidInput(
            "The message must be a JSON object.", 'It reads {"request_id": "a", "model": ...}.'
        )
    request_id = sent.pop("request_id", None)
    if not isinstance(request_id, str) or not 0 < len(request_id) <= LONGEST_ID:
        raise InvalidInput(
            f"The message has no request_id of 1 to {LONGEST_ID} characters.",
            "Choose one for each request; the frames of its answer carry it.",
        )
    return request_id, sent
