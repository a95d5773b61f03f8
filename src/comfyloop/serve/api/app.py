"""The application: routes, error form, what each request passes first, and what is opened and closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

from comfyloop import __version__
from comfyloop.serve.api import (
    audit,
    bundles,
    busy,
    chat,
    chat_socket,
    datasets,
    edge,
    errors,
    events,
    feedback,
    flags,
    forget,
    generations,
    graph_edits,
    health,
    image_adapters,
    images,
    loop,
    metrics,
    models,
    origin,
    preferences,
    projects,
    queue,
    reference,
    retention,
    runs,
    sleep,
    snapshots,
    taste,
    versions,
    votes,
)
from comfyloop.serve.api.common import whole_characters
from comfyloop.serve.api.recorder import Recorder
from comfyloop.serve.api.services import Services
from comfyloop.serve.engines.client import AsyncEngineClient

TELL_SECONDS = 3.0
NOUNS = (
    chat,
    chat_socket,
    models,
    sleep,
    generations,
    graph_edits,
    feedback,
    datasets,
    flags,
    queue,
    forget,
    images,
    taste,
    projects,
    preferences,
    snapshots,
    runs,
    versions,
    votes,
    image_adapters,
    bundles,
    loop,
    busy,
    events,
    health,
    metrics,
    reference,
    retention,
    audit,
)


async def _all_told(services: Services) -> None:
    """Answers that were cut off just now are still to hand over what was said, so that it is recorded."""
    deadline = time.monotonic() + TELL_SECONDS
    while services.router.traffic.waiting and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


Front = Callable[[FastAPI], None]
"""Adds pages for people to the application."""


def create_app(services: Services, front: Front | None = None) -> FastAPI:
    """The API over `services`, and the pages of `front`. It starts and stops no engine: that is the caller's."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.engines = AsyncEngineClient()
        services.recorder = Recorder(services.store)
        try:
            yield
        finally:
            await _all_told(services)
            await services.engines.close()
            await run_in_threadpool(services.recorder.close)

    app = FastAPI(
        title="ComfyLoop",
        version=__version__,
        summary="Chat that learns from its corrections.",
        description="OpenAI's chat completions, and the records of the loop that improves them.",
        lifespan=lifespan,
        responses=errors.RESPONSES,
        dependencies=[Depends(whole_characters)],
        generate_unique_id_function=lambda route: route.name,
        separate_input_output_schemas=False,
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.services = services
    for noun in NOUNS:
        app.include_router(noun.router)
    errors.install(app)
    if front is not None:
        front(app)
    limits = services.settings
    app.add_middleware(
        edge.Limited,
        max_bytes=limits.max_body_bytes,
        max_values=limits.max_json_values,
        max_file_bytes=limits.max_bundle_bytes,
    )
    if services.settings.token:
        app.add_middleware(edge.Tokened, token=services.settings.token, pages=front is not None)
    app.add_middleware(audit.Audited, audit=services.audit)
    app.add_middleware(origin.Guarded, settings=services.settings)
    app.add_middleware(edge.Measured, metrics=services.metrics)
    _make_routes(app)
    return app


def _make_routes(app: FastAPI) -> None:
    """FastAPI makes all that it needs of a router's routes when it first looks for one: not while people wait."""
    nowhere = {"type": "http", "method": "GET", "path": "/", "root_path": "", "headers": []}
    for route in app.routes:
        route.matches(dict(nowhere))
