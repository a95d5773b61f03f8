"""POST /v1/chat/completions: OpenAI's chat, answered by a version, recorded as a generation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from comfyloop.errors import ComfyLoopError, InvalidInput, NotFound, TooLarge
from comfyloop.records import BASE, Generation, ImagePart, Message, Part, Project, Sampling, TextPart, new_id
from comfyloop.serve.api import chat_images
from comfyloop.serve.api.chat_request import ChatMessage, ChatRequest
from comfyloop.serve.api.errors import error_body
from comfyloop.serve.api.services import Services, Svc
from comfyloop.serve.client import Stream, wire_message
from comfyloop.serve.names import ModelName
from comfyloop.serve.place import Lease

router = APIRouter(tags=["chat"])

_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


@dataclass
class Answering:
    """One request while it is answered: what was asked, of whom, and what was said so far."""

    services: Services
    lease: Lease
    id: str
    asked_as: str
    messages: tuple[Message, ...]
    sampling: Sampling
    said: list[str] = field(default_factory=list)
    finish_reason: str = "cancelled"  # until the engine gives one
    prompt_tokens: int = 0
    answer_tokens: int = 0

    @property
    def headers(self) -> dict[str, str]:
        return {"X-ComfyLoop-Generation": self.id, "X-ComfyLoop-Version": self.lease.name}

    def stamp(self, body: dict[str, Any]) -> dict[str, Any]:
        """Put our names into a response or chunk of the engine's."""
        body["id"] = self.id
        body["model"] = body["system_fingerprint"] = self.lease.name
        return body

    def count(self, usage: dict[str, Any] | None) -> None:
        if usage:
            self.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            self.answer_tokens = int(usage.get("completion_tokens") or 0)

    def note(self, chunk: dict[str, Any]) -> bool:
        """Keep what a chunk says; true when it holds the first words."""
        self.count(chunk.get("usage"))
        first = False
        for choice in chunk["choices"]:
            text = choice["delta"].get("content")
            if text:
                first = not self.said
                self.said.append(text)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return first

    def generation(self) -> Generation:
        return Generation(
            id=self.id,
            project=self.lease.project,
            version=self.lease.number,
            model=self.asked_as,
            messages=self.messages,
            answer="".join(self.said),
            sampling=self.sampling,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
        )

    def tally(self) -> None:
        tokens = self.services.metrics.tokens
        tokens.add(self.prompt_tokens, self.lease.project, "prompt")
        tokens.add(self.answer_tokens, self.lease.project, "answer")


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
    name = ModelName.parse(body.model)
    project = services.router.project(name.project)
    messages, wire = await _read(body.messages, project, services)
    lease = await services.router.acquire_async(name)
    answering = Answering(services, lease, new_id("gen"), body.model, messages, body.sampling)
    try:
        if body.stream:
            return await _streamed(answering, _engine_body(body, answering, wire), body)
        response = await _whole(answering, _engine_body(body, answering, wire), request)
    except BaseException:
        answering.lease.release()
        raise
    answering.lease.release()
    return response


async def _read(
    sent: list[ChatMessage], project: Project, services: Services
) -> tuple[tuple[Message, ...], list[dict[str, Any]]]:
    """The conversation as records, and as the engine reads it; images are stored on the way."""
    urls: dict[str, str] = {}  # sha256 -> data URL
    messages: list[Message] = []
    if project.system_prompt and not any(_ROLES[message.role] == "system" for message in sent):
        messages.append(Message.of("system", project.system_prompt))
    for message in sent:
        parts: list[Part] = []
        content = message.content
        if isinstance(content, str) or content is None:
            parts.append(TextPart(text=content or ""))
        else:
            for item in content:
                if item.type == "text":
                    parts.append(TextPart(text=item.text))
                else:
                    sha256, url = await run_in_threadpool(
                        chat_images.take, item.image_url.url, services.store, services.settings
                    )
                    urls[sha256] = url
                    parts.append(ImagePart(sha256=sha256))
        messages.append(Message(role=_ROLES[message.role], content=tuple(parts)))
    longest = max(len(message.text) for message in messages)
    if longest > services.settings.max_text_chars:
        raise TooLarge(
            f"A message has {longest} characters; {services.settings.max_text_chars} are allowed.",
            "Shorten it, or raise the setting max_text_chars.",
        )
    if not any(message.role == "user" for message in messages):
        raise InvalidInput("The messages hold nothing from the user.", "Add a message of the role user.")
    return tuple(messages), [wire_message(message, urls.__getitem__) for message in messages]


def _engine_body(body: ChatRequest, answering: Answering, wire: list[dict[str, Any]]) -> dict[str, Any]:
    sampling = answering.sampling
    sent: dict[str, Any] = {
        "model": answering.lease.model,
        "messages": wire,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.stop:
        sent["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        sent["seed"] = sampling.seed
    if body.logprobs:
        sent["logprobs"] = True
        sent["top_logprobs"] = body.top_logprobs or 0
    if body.stream:
        sent["stream_options"] = {"include_usage": True}
    return sent


# --- one response


async def _whole(answering: Answering, sent: dict[str, Any], request: Request) -> Response:
    answer = await _unless_gone(_ask(answering, sent), request)
    if answer is None:
        return Response(status_code=499)  # nobody reads it
    choice = answer["choices"][0]
    answering.said.append(choice["message"].get("content") or "")
    answering.finish_reason = choice.get("finish_reason") or "stop"
    answering.count(answer.get("usage"))
    answering.lease.place.warm = True
    answering.tally()
    await answering.services.recorder.record(answering.generation())
    return JSONResponse(answering.stamp(answer), headers=answering.headers)


async def _ask(answering: Answering, sent: dict[str, Any]) -> dict[str, Any]:
    services = answering.services
    try:
        return await services.engines.chat(answering.lease.url, sent)
    except NotFound:
        await _again(answering, sent)
        return await services.engines.chat(answering.lease.url, sent)


async def _again(answering: Answering, sent: dict[str, Any]) -> None:
    """The engine does not know the adapter: it was restarted behind our back. Load the same version again."""
    old = answering.lease
    if old.number == BASE:
        raise NotFound(f"The engine does not serve {old.model!r}.", "Start it with --served-model-name base.")
    services = answering.services
    services.router.lost(old.place)
    new = await services.router.acquire_async(ModelName(old.project, old.number))
    old.release()
    answering.lease = new
    sent["model"] = new.model


async def _unless_gone(call: Any, request: Request) -> dict[str, Any] | None:
    """The call's result, or None when the client left first; the engine then stops as well."""
    asking = asyncio.ensure_future(call)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            answer: dict[str, Any] = asking.result()
            return answer
        return None
    finally:
        for task in (asking, leaving):
            task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- chunk by chunk


async def _streamed(answering: Answering, sent: dict[str, Any], body: ChatRequest) -> Response:
    """The response whose status is known: what the engine refuses is raised here, before the first byte."""
    engines = answering.services.engines
    started = time.perf_counter()
    try:
        stream = await engines.open(answering.lease.url, sent)
    except NotFound:
        await _again(answering, sent)
        stream = await engines.open(answering.lease.url, sent)
    usage_wanted = body.stream_options is not None and body.stream_options.include_usage
    return _Streaming(answering, stream, usage_wanted, started)


class _Streaming(StreamingResponse):
    """Chunks as they come. However it ends, the version is let go, and what was said is recorded."""

    def __init__(self, answering: Answering, stream: Stream, usage_wanted: bool, started: float) -> None:
        super().__init__(
            self._events(usage_wanted, started),
            media_type="text/event-stream",
            headers={**answering.headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._answering = answering
        self._stream = stream
        self._recorded = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = self._answering
        try:
            await super().__call__(scope, receive, send)
        finally:
            answering.lease.release()
            answering.tally()
            if not self._recorded:  # the client left, or the engine broke off
                answering.services.recorder.submit(answering.generation())
            answering.services.in_background(self._stream.close())

    async def _events(self, usage_wanted: bool, started: float) -> AsyncIterator[bytes]:
        answering = self._answering
        services = answering.services
        try:
            async for chunk in self._stream:
                if answering.note(chunk):
                    services.metrics.first_token.observe(
                        time.perf_counter() - started, answering.lease.project
                    )
                if chunk["choices"] or usage_wanted:
                    yield _event(answering.stamp(chunk))
            answering.lease.place.warm = True
            self._recorded = True
            await services.recorder.record(answering.generation())
            yield b"data: [DONE]\n\n"
        except ComfyLoopError as error:
            # The status line is long gone: the error goes into the stream, where clients look for it.
            answering.finish_reason = "error"
            self._recorded = True
            with contextlib.suppress(ComfyLoopError):  # it may be the recording itself that fails
                await services.recorder.record(answering.generation())
            yield _event(error_body(error))


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
