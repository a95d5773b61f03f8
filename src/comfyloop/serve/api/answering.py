"""A question on its way: read, given to the version that answers it, and recorded; HTTP and WebSocket alike."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from starlette.concurrency import run_in_threadpool

from comfyloop import modalities
from comfyloop.errors import ComfyLoopError, InvalidInput, NotFound, TooLarge
from comfyloop.records import BASE, Generation, ImagePart, Message, Part, Project, Sampling, TextPart, new_id
from comfyloop.serve.api import chat_images
from comfyloop.serve.api.chat_request import ChatMessage, ChatRequest, Content
from comfyloop.serve.api.recalling import RecalledMessages, recalled
from comfyloop.serve.api.services import Services
from comfyloop.serve.chat_format import TextContent
from comfyloop.serve.engines.client import EngineClient, Stream
from comfyloop.serve.routing.handle import VersionHandle
from comfyloop.serve.routing.names import ModelName
from comfyloop.settings import Settings
from comfyloop.wire import wire_message

_Answer = TypeVar("_Answer")

_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


@dataclass
class _Said:
    """One of the answers, as far as it has come; each is a generation of its own."""

    id: str
    text: list[str] = field(default_factory=list)
    finish_reason: str = "cancelled"  # until the engine gives one


class Answering:
    """One request while it is answered. `close` it, whatever happens: that lets the version go and records
    what was said so far."""

    def __init__(
        self,
        services: Services,
        handle: VersionHandle,
        body: ChatRequest,
        messages: tuple[Message, ...],
        wire: list[dict[str, Any]],
        told: RecalledMessages,
    ) -> None:
        self.services = services
        self.handle = handle
        self.choices = [_Said(new_id("gen")) for _ in range(body.n or 1)]
        self._body = body
        self._messages = messages
        self._sampling = body.sampling
        self._wire = wire  # as the person sent it
        self._told = told
        self._sent = _engine_body(body, self._sampling)
        self._prompt_tokens = 0
        self._answer_tokens = 0
        self._stream: Stream | None = None
        self._opened = 0.0
        self._recorded = False
        self._closed = False

    @classmethod
    async def begin(cls, services: Services, body: ChatRequest) -> Answering:
        """Read the request and take hold of the version that answers it.

        Raises:
            NotFound, InvalidInput, TooLarge: What is wrong with the request.
            EngineUnavailable, QueueFull: It cannot be answered now.
        """
        services.router.traffic.enter()
        try:
            name = ModelName.parse(body.model)
            project = services.router.project(name.project)
            messages, wire = await _read(body.messages, project, services)
            handle = await services.router.acquire_async(name, _conversation(body, messages))
            try:
                told = await recalled(services, body, handle.number, messages, wire)
                return cls(services, handle, body, messages, wire, told)
            except BaseException:
                handle.release()
                raise
        except BaseException:
            services.router.traffic.leave()
            raise

    @property
    def id(self) -> str:
        return self.choices[0].id

    @property
    def headers(self) -> dict[str, str]:
        return {
            "X-ComfyLoop-Generation": self.id,
            "X-ComfyLoop-Version": self.handle.name,
            **self._told.headers,
        }

    @property
    def begun(self) -> dict[str, Any]:
        """What the headers say, for a WebSocket."""
        return {
            "generation": self.id,
            "version": self.handle.name,
            "examples": list(self._told.feedback),
        }

    # --- the answer

    async def whole(self) -> dict[str, Any]:
        """The completion, recorded."""
        answer = await self._ask(self.services.engines.chat)
        self.choices = self.choices[: len(answer["choices"])]  # an engine may know nothing of `n`
        for choice, said in zip(answer["choices"], self.choices, strict=False):
            said.text.append(choice["message"].get("content") or "")
            said.finish_reason = choice.get("finish_reason") or "stop"
        self._count(answer.get("usage"))
        self.handle.entry.warm = True
        await self._record()
        return self._stamp(answer)

    async def open(self) -> None:
        """Have the engine begin to stream. What it refuses is raised here, before the first chunk."""
        self._opened = time.perf_counter()
        self._stream = await self._ask(self.services.engines.open)

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of an answer that was opened; recorded when the last has been given.

        Raises EngineUnavailable when the engine breaks off, after recording what it said.
        """
        assert self._stream is not None
        usage_wanted = self._body.stream_options is not None and self._body.stream_options.include_usage
        first = True
        try:
            async for chunk in self._stream:
                if self._note(chunk) and first:
                    first = False
                    seconds = time.perf_counter() - self._opened
                    self.services.metrics.first_token.labels(self.handle.project).observe(seconds)
                if chunk["choices"] or usage_wanted:
                    yield self._stamp(chunk)
            self.handle.entry.warm = True
            await self._record()
        except ComfyLoopError:
            for said in self.choices:
                said.finish_reason = "error"
            with contextlib.suppress(ComfyLoopError):  # it may be the recording itself that fails
                await self._record()
            raise

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.handle.release()
        services = self.services
        services.router.traffic.leave()
        services.metrics.tokens.labels(self.handle.project, "prompt").inc(self._prompt_tokens)
        services.metrics.tokens.labels(self.handle.project, "answer").inc(self._answer_tokens)
        if self._stream is not None:
            if not self._recorded:  # the client left, or the engine broke off
                for generation in self._generations():
                    services.recorder.submit(generation)
            services.in_background(self._stream.close())

    async def _ask(self, call: Callable[[EngineClient, dict[str, Any]], Awaitable[_Answer]]) -> _Answer:
        """The engine's answer. What it refuses it is asked again without what the client did not send, which may be
        too long for it: first the examples, then our own limit of the answer."""
        while True:
            try:
                return await self._ask_for(call)
            except InvalidInput:
                if self._told.wire is not self._wire:
                    self._told = RecalledMessages(self._wire)
                elif "max_tokens" in self._sent and not self._body.limited:
                    del self._sent["max_tokens"]  # the answer has what the context leaves
                else:
                    raise

    async def _ask_for(self, call: Callable[[EngineClient, dict[str, Any]], Awaitable[_Answer]]) -> _Answer:
        try:
            return await call(self.handle.client, self._request())
        except NotFound:
            await self._load_again()
            return await call(self.handle.client, self._request())

    async def _load_again(self) -> None:
        """The engine does not know the adapter: it was restarted behind our back. Load the same version again."""
        old = self.handle
        if old.number == BASE:
            raise NotFound(
                f"The engine does not serve {old.model!r}.", "Start it with --served-model-name base."
            )
        router = self.services.router
        router.lost(old.entry)
        self.handle = await router.acquire_async(ModelName(old.project, old.number))
        old.release()

    def _request(self) -> dict[str, Any]:
        return {"model": self.handle.model, "messages": self._told.wire, **self._sent}

    # --- what is kept of it

    def _stamp(self, body: dict[str, Any]) -> dict[str, Any]:
        """Put our names into a response or chunk of the engine's."""
        body["id"] = self.id
        body["model"] = body["system_fingerprint"] = self.handle.name
        if self._told.feedback:
            body["examples"] = list(self._told.feedback)
        if len(self.choices) > 1:
            for choice in body["choices"]:
                choice["generation"] = self.choices[choice["index"]].id
        return body

    def _count(self, usage: dict[str, Any] | None) -> None:
        if usage:
            self._prompt_tokens = int(usage.get("prompt_tokens") or 0)
            self._answer_tokens = int(usage.get("completion_tokens") or 0)

    def _note(self, chunk: dict[str, Any]) -> bool:
        """Keep what a chunk says; true when it holds words."""
        self._count(chunk.get("usage"))
        words = False
        for choice in chunk["choices"]:
            said = self.choices[choice.get("index", 0)]
            text = choice["delta"].get("content")
            if text:
                words = True
                said.text.append(text)
            said.finish_reason = choice.get("finish_reason") or said.finish_reason
        return words

    async def _record(self) -> None:
        self._recorded = True
        for generation in self._generations():
            await self.services.recorder.record(generation)

    def _generations(self) -> list[Generation]:
        return [
            Generation(
                id=said.id,
                project=self.handle.project,
                version=self.handle.number,
                model=self._body.model,
                messages=self._messages,
                answer="".join(said.text),
                sampling=self._sampling,
                finish_reason=said.finish_reason,
                prompt_tokens=self._prompt_tokens,
                answer_tokens=self._answer_tokens // len(self.choices),
                examples=self._told.feedback,
            )
            for said in self.choices
        ]


def _conversation(body: ChatRequest, messages: tuple[Message, ...]) -> str:
    """What stays the same from turn to turn: who asks, where that is told, else how the conversation began."""
    told = body.user or body.safety_identifier or body.prompt_cache_key
    if told:
        return told
    first = next(message for message in messages if message.role == "user")
    return hashlib.sha256(first.model_dump_json().encode()).hexdigest()


async def _read(
    sent: list[ChatMessage], project: Project, services: Services
) -> tuple[tuple[Message, ...], list[dict[str, Any]]]:
    """The conversation as records, and as the engine reads it; images are stored on the way."""
    urls: dict[str, str] = {}  # sha256 -> data URL
    taken: dict[str, str] = {}  # URL as it was sent -> sha256
    _check_amount(sent, services.settings)
    size = 0  # bytes of images, as the engine is sent them
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
                if isinstance(item, TextContent):
                    parts.append(TextPart(text=item.text))
                elif isinstance(item, modalities.Part):
                    parts.append(item)
                else:
                    asked = item.image_url.url
                    if asked not in taken:
                        sha256, url = await run_in_threadpool(
                            chat_images.take, asked, services.store, services.settings
                        )
                        urls[sha256], taken[asked] = url, sha256
                    size += len(urls[taken[asked]])
                    if size > services.settings.max_body_bytes * 4 // 3 + 1024:  # in base64, as it is sent on
                        raise TooLarge(
                            "The images of the conversation have more bytes together than a body may have.",
                            "Send fewer or smaller ones.",
                        )
                    parts.append(ImagePart(sha256=taken[asked]))
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


def _check_amount(sent: list[ChatMessage], settings: Settings) -> None:
    """Refuse a conversation that is longer than any model reads."""
    contents = [message.content for message in sent]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    texts = [content for content in contents if isinstance(content, str)]
    characters = sum(map(len, texts)) + sum(len(_text_of(part)) for part in parts)
    if characters > settings.max_chat_chars:
        raise TooLarge(
            f"The conversation has {characters} characters; {settings.max_chat_chars} are allowed.",
            "Leave out what is long past, or raise the setting max_chat_chars.",
        )
    pictures = sum(part.type == "image_url" for part in parts)
    if pictures > settings.max_chat_images:
        raise TooLarge(
            f"The conversation has {pictures} images; {settings.max_chat_images} are allowed.",
            "Leave out what is long past, or raise the setting max_chat_images.",
        )


def _text_of(part: Content) -> str:
    if isinstance(part, TextContent):
        return part.text
    return (part.model_input or "") if isinstance(part, modalities.Part) else ""


def _engine_body(body: ChatRequest, sampling: Sampling) -> dict[str, Any]:
    sent: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.stop:
        sent["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        # Engines take 63 bits and a sign; ComfyUI draws 64 bits, which stay the same ones.
        sent["seed"] = sampling.seed if sampling.seed < 2**63 else sampling.seed - 2**64
    if body.n and body.n > 1:
        sent["n"] = body.n
    if body.response_format is not None and body.response_format.type != "text":
        sent["response_format"] = body.response_format.model_dump(by_alias=True, exclude_none=True)
    if body.repetition_detection is not None:
        sent["repetition_detection"] = body.repetition_detection.model_dump()
    if body.logprobs:
        sent["logprobs"] = True
        sent["top_logprobs"] = body.top_logprobs or 0
    if body.stream:
        sent["stream_options"] = {"include_usage": True}
    return sent
