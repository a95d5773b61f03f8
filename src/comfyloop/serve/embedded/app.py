"""HTTP: OpenAI's chat protocol over the model thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from comfyloop.errors import ComfyLoopError, EngineUnavailable
from comfyloop.serve.embedded import protocol
from comfyloop.serve.embedded.engine import Engine, Event, Failed, Finished, Job, Piece, Sampling
from comfyloop.serve.embedded.protocol import ChatRequest, LoadAdapter, UnloadAdapter
from comfyloop.serve.embedded.sampling import TokenLogprob


def create_app(engine: Engine) -> FastAPI:
    app = FastAPI(title="ComfyLoop embedded engine", docs_url=None, redoc_url=None)

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
        place = ".".join(str(p) for p in first["loc"] if p != "body")
        message = str(first["msg"]).removeprefix("Value error, ")
        sentence = f"{place}: {message}" if place else message
        return JSONResponse(protocol.error(sentence, "invalid_input", 400, place or None), 400)

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

    @app.get("/load")
    async def load() -> dict[str, int]:
        return engine.load

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = engine.metrics.text(adapters=len(engine.adapters), **engine.load)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

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
        adapter = await asyncio.to_thread(
            engine.add_adapter,
            body.lora_name,
            lambda: read_adapter(body.lora_name, Path(body.lora_path), model),
        )
        size = f"r={adapter.r}, alpha={adapter.alpha:g}, {len(adapter.pairs)} layers"
        return PlainTextResponse(f"Adapter {adapter.name} is loaded: {size}.")

    @app.post("/v1/unload_lora_adapter")
    async def unload_adapter(body: UnloadAdapter) -> PlainTextResponse:
        _require_ready(engine)
        await asyncio.to_thread(engine.remove_adapter, body.lora_name)
        return PlainTextResponse(f"Adapter {body.lora_name} is unloaded.")

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        _require_ready(engine)
        engine.adapter(body.model)  # an unknown name is refused before any work
        prompt = await asyncio.to_thread(
            engine.prompts.make,
            body.messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
        )
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def emit(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = engine.submit(body.model, prompt, _sampling(body), emit)
        answer = Answer(engine, body, f"chatcmpl-{secrets.token_hex(12)}", job, events)
        if body.stream:
            return StreamingResponse(answer.stream(), media_type="text/event-stream")
        return await answer.whole(request)

    return app


class Answer:
    """One answer on its way out. When the client leaves, the job is cancelled."""

    def __init__(
        self, engine: Engine, body: ChatRequest, id: str, job: Job, events: asyncio.Queue[Event]
    ) -> None:
        self._engine, self._body, self._id, self._job, self._events = engine, body, id, job, events

    async def whole(self, request: Request) -> Response:
        collecting = asyncio.ensure_future(self._collect())
        leaving = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return Response(status_code=499)
            text, logprobs, end = collecting.result()
        finally:
            leaving.cancel()
            if not collecting.done():
                collecting.cancel()
                self._engine.cancel(self._job)
        told = [self._told(t) for t in logprobs] if self._body.logprobs else None
        counts = protocol.usage(end.prompt_tokens, end.answer_tokens, end.cached_tokens)
        answer = protocol.completion(self._id, self._body.model, text, end.reason, told, counts)
        if end.prompt_logprobs is not None:
            answer["prompt_logprobs"] = [None if t is None else self._scored(t) for t in end.prompt_logprobs]
        return JSONResponse(answer)

    async def _collect(self) -> tuple[str, list[TokenLogprob], Finished]:
        text: list[str] = []
        logprobs: list[TokenLogprob] = []
        while True:
            event = await self._events.get()
            if isinstance(event, Finished):
                return "".join(text), logprobs, event
            if isinstance(event, Failed):
                raise event.error
            text.append(event.text)
            logprobs += event.logprobs

    async def stream(self) -> AsyncIterator[str]:
        model, end = self._body.model, None
        try:
            yield _sse(protocol.chunk(self._id, model, {"role": "assistant", "content": ""}))
            while end is None:
                event = await self._events.get()
                if isinstance(event, Piece):
                    told = [self._told(t) for t in event.logprobs] if self._body.logprobs else None
                    yield _sse(protocol.chunk(self._id, model, {"content": event.text}, logprobs=told))
                elif isinstance(event, Failed):
                    error = event.error
                    yield _sse(protocol.error(str(error), error.code, error.status))
                    return
                else:
                    end = event
            yield _sse(protocol.chunk(self._id, model, {}, reason=end.reason))
            if self._body.stream_options is not None and self._body.stream_options.include_usage:
                counts = protocol.usage(end.prompt_tokens, end.answer_tokens, end.cached_tokens)
                yield _sse(protocol.usage_chunk(self._id, model, counts))
            yield "data: [DONE]\n\n"
        finally:
            if end is None:
                self._engine.cancel(self._job)

    def _told(self, told: TokenLogprob) -> dict[str, Any]:
        top = [{**self._token(i), "logprob": p} for i, p in told.top]
        return {**self._token(told.token), "logprob": told.logprob, "top_logprobs": top}

    def _scored(self, told: TokenLogprob) -> dict[str, Any]:
        entries = {
            str(i): {"logprob": p, "rank": rank, "decoded_token": self._token(i)["token"]}
            for rank, (i, p) in enumerate(told.top, 1)
        }
        entries[str(told.token)] = {
            "logprob": told.logprob,
            "rank": told.rank,
            "decoded_token": self._token(told.token)["token"],
        }
        return entries

    def _token(self, token: int) -> dict[str, Any]:
        text = self._engine.loaded.tokenizer.decode([token])
        return {"token": text, "bytes": list(text.encode())}


def _sampling(body: ChatRequest) -> Sampling:
    return Sampling(
        max_tokens=body.limit,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=tuple(body.stops),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )


def _require_ready(engine: Engine) -> None:
    if engine.error is not None:
        raise engine.error
    if not engine.ready.is_set():
        raise EngineUnavailable("The model is still being loaded.", retry_after=1)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
