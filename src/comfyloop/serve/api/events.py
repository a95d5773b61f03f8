"""WS /v1/events: what happens, as it happens."""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from comfyloop.records import ProjectName
from comfyloop.serve.api.services import Svc, one_of
from comfyloop.serve.events import Events

router = APIRouter(tags=["events"])

MOST_LISTENERS = 128


@router.websocket("/v1/events")
async def events(socket: WebSocket, services: Svc, project: ProjectName | None = None) -> None:
    """JSON events, of one project or of all. What the client sends is not read."""
    async with one_of(socket, services, "events", MOST_LISTENERS):
        await _listen(socket, services.controller.events, project)


async def _listen(socket: WebSocket, events: Events, project: str | None) -> None:
    await socket.accept()
    telling = asyncio.create_task(_tell(socket, events, project))
    try:
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass
    finally:
        telling.cancel()
        with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
            await telling


async def _tell(socket: WebSocket, events: Events, project: str | None) -> None:
    async for told in events.subscribe():
        if project is None or told.event.get("project", project) == project:
            await socket.send_text(told.text)
