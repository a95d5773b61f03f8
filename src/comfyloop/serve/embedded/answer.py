"""One request on its way out: its answers whole, or chunk by chunk as they grow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from comfyloop.errors import ComfyLoopError
from comfyloop.serve.embedded import protocol
from comfyloop.serve.embedded.engine import EmbeddedEngine
from comfyloop.serve.embedded.jobs import Event, Failed, Finished, Job, JobSampling, TextPiece
from comfyloop.serve.embedded.prompts import Prompt
from comfyloop.serve.embedded.protocol import EngineChatRequest
from comfyloop.serve.embedded.sampling import TokenLogprob
from comfyloop.serve.embedded.structure import Structure
from comfyloop.serve.embedded.text import bytes_of


@dataclass
class _Choice:
    """One of the answers, as far as it has come."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None


class RequestAnswers:
    """The `n` answers to one request. They are queued at once; when the client leaves, they are cancelled.

    Args:
        structures: What each answer follows, or none at all.

    Raises:
        What `Engine.submit` raises; nothing is queued then.
    """

    def __init__(
        self,
        engine: EmbeddedEngine,
        body: EngineChatRequest,
        prompt: Prompt,
        structures: Sequence[Structure | None],
    ) -> None:
        self._engine, self._body = engine, body
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._choices = [_Choice() for _ in range(body.n)]
        self._jobs: list[Job] = []
        loop = asyncio.get_running_loop()
        try:
            for index in range(body.n):
                structure = structures[index] if structures else None
                sampling = _sampling(body, index)
                self._jobs.append(
                    engine.submit(body.model, prompt, sampling, self._emit(loop, index), structure)
                )
        except BaseException:
            self.cancel()
            raise

    def _emit(self, loop: asyncio.AbstractEventLoop, index: int) -> Callable[[Event], None]:
        # Without a way back to this answer, which holds its jobs: in a circle they, and the adapter that they were
        # answered with, would lie in memory until the garbage collector comes round.
        events = self._events

        def emit(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(events.put_nowait, (index, event))

        return emit

    def cancel(self) -> None:
        """Have the engine drop what is not over."""
        for job, choice in zip(self._jobs, self._choices, strict=False):
            if choice.end is None:
                self._engine.cancel(job)

    async def _next(self) -> tuple[int, TextPiece | Finished]:
        """The next event, kept with its answer. Raises why one of them failed."""
        index, event = await self._events.get()
        choice = self._choices[index]
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            choice.end = event
        else:
            choice.text.append(event.text)
            choice.logprobs += event.logprobs
        return index, event

    @property
    def _ends(self) -> list[Finished]:
        return [choice.end for choice in self._choices if choice.end is not None]

    @property
    def _done(self) -> bool:
        return len(self._ends) == len(self._choices)

    # --- whole

    async def whole(self, request: Request) -> Response:
        try:
            if not await _unless_gone(request, self._collect()):
                return Response(status_code=499)
        finally:
            self.cancel()
        choices = [
            protocol.choice(index, "".join(choice.text), end.reason, self._logprobs(choice.logprobs))
            for index, (choice, end) in enumerate(zip(self._choices, self._ends, strict=True))
        ]
        answer = protocol.completion(self._id, self._body.model, choices, self._usage())
        scored = self._ends[0].prompt_logprobs
        if scored is not None:
            answer["prompt_logprobs"] = [None if t is None else self._scored(t) for t in scored]
        return JSONResponse(answer)

    async def _collect(self) -> None:
        while not self._done:
            await self._next()

    # --- chunk by chunk

    async def stream(self) -> AsyncIterator[str]:
        model = self._body.model
        try:
            for index in range(len(self._choices)):
                start = {"role": "assistant", "content": ""}
                yield _sse(protocol.chunk(self._id, model, start, index=index))
            while not self._done:
                index, event = await self._next()
                if isinstance(event, Finished):
                    yield _sse(protocol.chunk(self._id, model, {}, index=index, reason=event.reason))
                else:
                    said, told = {"content": event.text}, self._logprobs(event.logprobs)
                    yield _sse(protocol.chunk(self._id, model, said, index=index, logprobs=told))
            if self._body.stream_options is not None and self._body.stream_options.include_usage:
                yield _sse(protocol.usage_chunk(self._id, model, self._usage()))
            yield "data: [DONE]\n\n"
        except ComfyLoopError as error:
            yield _sse(protocol.error(str(error), error.code, error.status))
        except Exception as error:  # the status line is long gone
            sentence = f"The engine failed on this request: {type(error).__name__}: {error}"
            yield _sse(protocol.error(sentence, "engine_failed", 500))
        finally:
            self.cancel()

    # --- what is told

    def _usage(self) -> dict[str, Any]:
        ends = self._ends
        return protocol.usage(
            ends[0].prompt_tokens, sum(end.answer_tokens for end in ends), ends[0].cached_tokens
        )

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]] | None:
        return [self._told(token) for token in tokens] if self._body.logprobs else None

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
        tokenizer = self._engine.loaded.tokenizer
        text = tokenizer.decode([token])
        return {"token": text, "bytes": list(bytes_of(text, tokenizer.convert_ids_to_tokens(token)))}


class Likelihoods:
    """How likely some continuations are after a prompt. Raises what `Engine.submit` raises."""

    def __init__(
        self, engine: EmbeddedEngine, model: str, prompt: Prompt, continuations: list[list[int]]
    ) -> None:
        self._engine, self._model = engine, model
        self._end: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        end, loop = self._end, asyncio.get_running_loop()

        def emit(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(lambda: None if end.done() else end.set_result(event))

        self._job = engine.submit(model, prompt, JobSampling(), emit, continuations=continuations)

    async def whole(self, request: Request) -> Response:
        try:
            if not await _unless_gone(request, self._end):
                return Response(status_code=499)
        finally:
            self._engine.cancel(self._job)
        event = self._end.result()
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Finished) and event.scores is not None
        counts = protocol.usage(event.prompt_tokens, 0, event.cached_tokens)
        return JSONResponse(protocol.loglikelihood(self._model, event.scores, counts))


class Streamed(StreamingResponse):
    """An answer chunk by chunk. However it ends, and be it before the first chunk, its jobs end with it."""

    def __init__(self, answer: RequestAnswers) -> None:
        super().__init__(answer.stream(), media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


def _sampling(body: EngineChatRequest, index: int) -> JobSampling:
    """Of the answer with this index: each has a seed of its own."""
    return JobSampling(
        max_tokens=body.limit,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=None if body.seed is None else body.seed + index,
        stop=tuple(body.stops),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        alone=body.batch_invariant,
        repetition=body.repetition,
    )


async def _unless_gone(request: Request, work: Awaitable[Any]) -> bool:
    """Wait for `work`, and raise what it raises; False where the client leaves first."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        leaving.cancel()
        working.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
