"""HTTP: OpenAI's chat protocol over the model thread."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from comfyloop.complaints import complaints
from comfyloop.errors import ComfyLoopError, EngineUnavailable
from comfyloop.serve.embedded import protocol
from comfyloop.serve.embedded.answer import Likelihoods, RequestAnswers, Streamed
from comfyloop.serve.embedded.engine import EmbeddedEngine
from comfyloop.serve.embedded.protocol import (
    EngineChatRequest,
    LoadAdapter,
    LoglikelihoodRequest,
    UnloadAdapter,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def create_app(engine: EmbeddedEngine) -> FastAPI:
    app = FastAPI(title="ComfyLoop embedded engine", docs_url=None, redoc_url=None)

    if engine.options.secret:
        app.add_middleware(_Secret, secret=engine.options.secret)

    @app.exception_handler(ComfyLoopError)
    async def _refused(_: Request, error: ComfyLoopError) -> JSONResponse:
        headers = {"Retry-After": f"{error.retry_after:.0f}"} if error.retry_after is not None else None
        return JSONResponse(protocol.error(str(error), error.code, error.status), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def _malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            sentence = f"The body is not valid JSON at character {first['loc'][-1]}."
            return JSONResponse(protocol.error(sentence, "invalid_json", 400), 400)
        place, what = complaints([{**e, "loc": e["loc"][1:]} for e in error.errors()], error.body)[0]
        sentence = f"{place}: {what}" if place else what
        return JSONResponse(protocol.error(sentence, "invalid_input", 400, place or None), 400)

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> JSONResponse:
        sentence = f"The engine failed on this request: {type(error).__name__}: {error}"
        return JSONResponse(protocol.error(sentence, "engine_failed", 500), 500)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(protocol.error(str(error.detail), "http", error.status_code), error.status_code)

    @app.get("/health")
    async def health() -> Response:
        if engine.error is not None:
            raise engine.error
        if not engine.ready.is_set():
            raise EngineUnavailable("The model is still being loaded.", retry_after=1)
        return JSONResponse({"status": "ok", "model": engine.options.model, "context": engine.loaded.context})

    @app.get("/is_sleeping")
    async def is_sleeping() -> dict[str, Any]:
        _require_ready(engine)
        told = {"is_sleeping": engine.is_sleeping, "wake_seconds": engine.wake_seconds}
        return {**told, "device": engine.device.type}

    @app.post("/sleep")
    async def sleep(level: Annotated[int, Query(ge=1, le=2)] = 1) -> Response:
        await _in_thread(engine.sleep, 2 if level == 2 else 1)
        return Response()

    @app.post("/wake_up")
    async def wake_up() -> Response:
        _require_ready(engine)
        await _in_thread(engine.wake_up)
        return Response()

    @app.get("/load")
    async def load() -> dict[str, int]:
        return engine.load

    @app.get("/metrics")
    async def metrics() -> Response:
        text = engine.metrics.text(adapters=len(engine.adapters), **engine.load)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        base = engine.options.served_model_name
        cards = [protocol.model_card(base, None, engine.options.model)]
        cards += [protocol.model_card(a.name, base, str(a.path)) for a in engine.adapters]
        return {"object": "list", "data": cards}

    @app.post("/v1/load_lora_adapter")
    async def load_adapter(body: LoadAdapter) -> PlainTextResponse:
        from comfyloop.serve.embedded.lora import read_adapter

        _require_ready(engine)
        model = engine.loaded.model
        adapter = await _in_thread(
            engine.add_adapter,
            body.lora_name,
            lambda: read_adapter(body.lora_name, Path(body.lora_path), model),
        )
        size = f"r={adapter.r}, alpha={adapter.alpha:g}, {len(adapter.pairs)} layers"
        return PlainTextResponse(f"Adapter {adapter.name} is loaded: {size}.")

    @app.post("/v1/unload_lora_adapter")
    async def unload_adapter(body: UnloadAdapter) -> PlainTextResponse:
        _require_ready(engine)
        await _in_thread(engine.remove_adapter, body.lora_name)
        return PlainTextResponse(f"Adapter {body.lora_name} is unloaded.")

    @app.post("/v1/chat/completions")
    async def chat(body: EngineChatRequest, request: Request) -> Response:
        _require_ready(engine)
        engine.adapter(body.model)  # an unknown name is refused before any work
        prompt = await _in_thread(
            engine.prompts.make,
            body.messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
        )
        structures = []
        if body.response_format is not None:
            structures = [await _in_thread(engine.structures.of, body.response_format) for _ in range(body.n)]
        answer = RequestAnswers(engine, body, prompt, structures)
        if body.stream:
            return Streamed(answer)
        return await answer.whole(request)

    @app.post("/v1/loglikelihood")
    async def loglikelihood(body: LoglikelihoodRequest, request: Request) -> Response:
        _require_ready(engine)
        engine.adapter(body.model)
        prompt = await _in_thread(
            engine.prompts.make, body.messages, add_generation_prompt=True, continue_final_message=False
        )
        continuations = await _in_thread(engine.prompts.continuations, body.messages, body.continuations)
        return await Likelihoods(engine, body.model, prompt, continuations).whole(request)

    return app


async def _in_thread(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """`asyncio.to_thread`, for code that raises what it likes.

    A future takes any exception but StopIteration: with it the caller would wait for ever.
    """

    def run() -> _T:
        try:
            return work(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError(f"{work.__qualname__} ran out of what it was given") from error

    return await asyncio.to_thread(run)


class _Secret:
    """Answer the service alone: any user of this machine, and any page in its browser, reaches the port."""

    def __init__(self, app: ASGIApp, secret: str) -> None:
        self.app, self.wanted = app, f"Bearer {secret}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = dict(scope.get("headers", ())).get(b"authorization", b"")
        if hmac.compare_digest(sent, self.wanted):
            await self.app(scope, receive, send)
        else:
            sentence = "This engine answers the service that started it, and nobody else."
            await JSONResponse(protocol.error(sentence, "unauthorized", 401), 401)(scope, receive, send)


def _require_ready(engine: EmbeddedEngine) -> None:
    if engine.error is not None:
        raise engine.error
    if not engine.ready.is_set():
        raise EngineUnavailable("The model is still being loaded.", retry_after=1)
