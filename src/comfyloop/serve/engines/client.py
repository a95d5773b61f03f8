"""The engine protocol from the caller's side: OpenAI's chat completions and vLLM's adapter routes.

`EngineClient` is for threads (the loop, the gate, the router), `AsyncEngineClient` for the gateway. Both
raise the errors of `comfyloop.errors` with the engine's own sentence: NotFound for a model name that it does
not serve, QueueFull when its queue is full, InvalidInput for a request that it refuses, EngineUnavailable when it
does not answer or breaks off.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from comfyloop.errors import (
    ComfyLoopError,
    Conflict,
    EngineUnavailable,
    InvalidInput,
    NotFound,
    QueueFull,
    TooLarge,
)
from comfyloop.serve.engines.connections import Connections, HttpError, Response
from comfyloop.serve.engines.sleeper import Sleeper

WireMessage = Mapping[str, Any]
"""A chat message as OpenAI's API spells it: {"role", "content": str | [{"type": ..., ...}]}."""

BASE_NAME = "base"
"""What the base model is called in the engine."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 600.0
LOAD_SECONDS = 120.0
SLEEP_SECONDS = 120.0
WAKE_SECONDS = 600.0
"""For weights that are read from a slow disk."""
_PROMPTS = 4096
"""Prompts whose length is remembered."""


@dataclass(frozen=True)
class Dialect:
    """Where engines that load adapters while they run differ.

    Attributes:
        load, unload: The routes.
        adapter: What a request calls an adapter, by its `{name}` and that of the `{base}` model.
    """

    load: str = "/v1/load_lora_adapter"
    unload: str = "/v1/unload_lora_adapter"
    adapter: str = "{name}"


VLLM = Dialect()


@dataclass(frozen=True)
class Score:
    """Log-probabilities (nats) of the tokens of a given answer, the template's closing tokens included."""

    logprobs: list[float]

    @property
    def mean(self) -> float:
        return sum(self.logprobs) / len(self.logprobs)


_PUT_IN = re.compile(rb'"\\u0000(\d+)"')


def encoded(body: Mapping[str, Any]) -> bytes:
    """A chat request as JSON. The data: URLs of its pictures, megabytes of letters that JSON leaves as they are, are
    put in as they are: to look at each letter would hold up the event loop."""
    urls: list[bytes] = []

    def without(part: Any) -> Any:
        url = part["image_url"]["url"] if part["type"] == "image_url" else ""
        if not url.startswith("data:"):
            return part
        urls.append(url.encode())
        return {**part, "image_url": {**part["image_url"], "url": f"\0{len(urls) - 1}"}}  # no text has a NUL

    messages = [
        {**message, "content": [without(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in body["messages"]
    ]
    data = json.dumps({**body, "messages": messages}, ensure_ascii=False, separators=(",", ":")).encode()
    pieces = _PUT_IN.split(data)  # every other one is a number
    pieces[1::2] = [b'"' + urls[int(number)] + b'"' for number in pieces[1::2]]
    return b"".join(pieces)


def error_of(status: int, body: bytes, retry_after: str | None = None) -> ComfyLoopError:
    """The engine's error response as one of our exceptions."""
    message = ""
    try:
        parsed = json.loads(body)
        error = parsed.get("error", parsed)
        if isinstance(error, dict):
            message = str(error.get("message") or error.get("error_message") or "")  # SGLang's, of adapters
        else:
            message = str(error)
    except (ValueError, AttributeError):
        message = body[:300].decode("utf-8", "replace")
    message = message or f"The engine answered with status {status} and no reason."
    try:
        seconds = float(retry_after) if retry_after else None
    except ValueError:
        seconds = None
    if status == 404:
        return NotFound(message)
    if status == 409:
        return Conflict(message)
    if status == 413:
        return TooLarge(message)
    if status == 429:
        return QueueFull(message, retry_after=seconds or 1.0)
    if 400 <= status < 500:
        return InvalidInput(message)
    return EngineUnavailable(f"The engine failed: {message}", retry_after=seconds or 2.0)


def _unreachable(error: Exception) -> EngineUnavailable:
    if isinstance(error, httpx.TimeoutException | httpcore.TimeoutException):
        return EngineUnavailable("The engine did not answer in time.", "Try again.", retry_after=5.0)
    return EngineUnavailable(
        f"The engine cannot be reached or broke off its answer ({type(error).__name__}).",
        "It is restarted when it has died; try again in a moment.",
        retry_after=2.0,
    )


def _raise_for(response: httpx.Response) -> None:
    if response.status_code >= 400:
        raise error_of(response.status_code, response.content, response.headers.get("retry-after"))


class EngineClient:
    """Blocking calls to one engine. Thread-safe. Call `close()` at the end."""

    def __init__(self, url: str, secret: str = "", dialect: Dialect = VLLM) -> None:
        self.url = url.rstrip("/")
        self.secret = secret
        self.sleeper = Sleeper(self._sleep, self._wake)
        self.device = ""
        """On which it computes, where it says so."""
        self.base_name = BASE_NAME
        self._dialect = dialect
        self._scores_together = True
        self._prompt_tokens: dict[bytes, int] = {}
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {secret}"} if secret else {},
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            # Shorter than the five seconds after which uvicorn closes an idle connection from its side.
            limits=httpx.Limits(keepalive_expiry=2.0),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def _call(
        self, method: str, path: str, body: Any = None, *, seconds: float | None = None
    ) -> httpx.Response:
        timeout = (
            httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
            if seconds
            else httpx.USE_CLIENT_DEFAULT
        )
        try:
            response = self._http.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        _raise_for(response)
        return response

    def _ask(self, path: str, body: Any, *, seconds: float | None = None) -> httpx.Response:
        """What needs the engine awake."""
        with self.sleeper.awake():
            return self._call("POST", path, body, seconds=seconds)

    def _sleep(self, level: int) -> None:
        self._call("POST", f"/sleep?level={level}", seconds=SLEEP_SECONDS)

    def _wake(self) -> None:
        self._call("POST", "/wake_up", seconds=WAKE_SECONDS)

    def look_asleep(self) -> None:
        """Whether the engine knows how to sleep, and does."""
        try:
            told = self._call("GET", "/is_sleeping", seconds=10).json()
            asleep = bool(told["is_sleeping"])
        except (ComfyLoopError, ValueError, KeyError, TypeError):
            return
        self.sleeper.can_sleep = True
        self.device = str(told.get("device", ""))
        if asleep:
            self.sleeper.seems_asleep()

    def healthy(self, seconds: float = 2.0) -> bool:
        """Whether the model is loaded and the engine answers within `seconds`."""
        try:
            self._call("GET", "/health", seconds=seconds)
        except ComfyLoopError:
            return False
        return True

    def models(self) -> dict[str, str]:
        """Names that the engine answers to, the base model's first, with where each was loaded from (empty
        where the engine does not say)."""
        listed = self._call("GET", "/v1/models", seconds=10).json()["data"]
        return {model["id"]: str(model.get("root") or "") for model in listed}

    def load(self, name: str, path: str) -> None:
        """Load the PEFT directory `path` as model `name`.

        Raises:
            InvalidInput, NotFound: The engine refuses the adapter; its sentence says why.
            Conflict: The name is taken.
        """
        self._ask(self._dialect.load, {"lora_name": name, "lora_path": path}, seconds=LOAD_SECONDS)

    def unload(self, name: str) -> None:
        """Forget an adapter. Raises Conflict while requests of it run, NotFound when it is not loaded."""
        self._ask(self._dialect.unload, {"lora_name": name}, seconds=LOAD_SECONDS)

    def addressed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request as this engine wants its model to be called."""
        name, base = body["model"], self.base_name
        return {**body, "model": name if name == base else self._dialect.adapter.format(name=name, base=base)}

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One whole chat completion, request and response in OpenAI's form."""
        asked = self.addressed({**body, "stream": False})
        parsed: dict[str, Any] = self._ask("/v1/chat/completions", asked).json()
        return parsed

    def answer(self, model: str, messages: Sequence[WireMessage], max_tokens: int) -> str:
        """The greedy answer of `model`; the same call gives the same answer, whatever else the embedded engine
        answers meanwhile. Of others only their own settings can say so."""
        body = {
            "model": model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "batch_invariant": True,
        }
        return str(self.chat(body)["choices"][0]["message"]["content"] or "")

    def _counted(self, model: str, prompt: Sequence[WireMessage]) -> int:
        """The tokens of a prompt, with what the template puts before the answer."""
        key = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
        if (known := self._prompt_tokens.get(key)) is not None:
            return known
        body = {"model": model, "messages": prompt, "max_tokens": 1, "temperature": 0.0}
        counted = int(self.chat(body | {"add_generation_prompt": True})["usage"]["prompt_tokens"])
        if len(self._prompt_tokens) >= _PROMPTS:
            self._prompt_tokens.clear()
        self._prompt_tokens[key] = counted
        return counted

    def scores(self, model: str, messages: Sequence[WireMessage], answers: Sequence[str]) -> list[Score]:
        """How likely `model` finds each of `answers` after `messages`, token by token, as it would be served.

        The embedded engine is asked for all of them at once; another one for each by itself.
        """
        if self._scores_together:
            body = {"model": model, "messages": list(messages), "continuations": list(answers)}
            try:
                told = self._ask("/v1/loglikelihood", body).json()["data"]
                return [Score(one["logprobs"]) for one in told]
            except NotFound:  # of the route or of the model: the other way tells which
                pass
        found = [self._score(model, messages, answer) for answer in answers]
        self._scores_together = False
        return found

    def _score(self, model: str, messages: Sequence[WireMessage], answer: str) -> Score:
        """By vLLM's prompt_logprobs.

        Two calls: the first counts the tokens of the prompt, which are as many to every version and are remembered,
        the second has the engine read the prompt with the answer behind it, of which the tokens after the prompt are
        kept.
        """
        prompt = list(messages)
        prompt_tokens = self._counted(model, prompt)
        read = self.chat(
            {
                "model": model,
                "messages": [*prompt, {"role": "assistant", "content": answer}],
                "max_tokens": 1,
                "temperature": 0.0,
                "add_generation_prompt": False,
                "prompt_logprobs": 0,
            }
        )
        entries = (read.get("prompt_logprobs") or [])[prompt_tokens:]
        if not entries:
            raise Conflict(
                f"The engine gave no prompt_logprobs for {model!r}, so it serves but cannot judge a candidate.",
                "Use the embedded engine or vLLM, or promote versions by hand.",
            )
        return Score([next(iter(entry.values()))["logprob"] for entry in entries])


class AsyncEngineClient:
    """The gateway's calls to engines. Bound to the event loop that made it."""

    def __init__(self) -> None:
        self._connections = Connections(CONNECT_SECONDS, ANSWER_SECONDS)

    async def close(self) -> None:
        await self._connections.close()

    async def chat(self, engine: EngineClient, body: Mapping[str, Any]) -> dict[str, Any]:
        """One whole chat completion from `engine`."""
        async with engine.sleeper.awake_async():
            response = await self._post(engine, body)
            try:
                parsed: dict[str, Any] = json.loads(await response.read())
            except HttpError as error:
                raise _unreachable(error) from error
        return parsed

    async def open(self, engine: EngineClient, body: Mapping[str, Any]) -> Stream:
        """A streamed chat completion, once the engine has accepted it. Close it, whatever happens.

        Raises what the engine refuses.
        """
        await engine.sleeper.enter_async()
        try:
            response = await self._post(engine, {**body, "stream": True})
        except BaseException:
            engine.sleeper.leave()
            raise
        return Stream(response, engine.sleeper.leave)

    async def _post(self, engine: EngineClient, body: Mapping[str, Any]) -> Response:
        """An answer that has begun; one that is a refusal is raised."""
        data = encoded(engine.addressed(body))
        try:
            response = await self._connections.post(f"{engine.url}/v1/chat/completions", data, engine.secret)
            if response.status >= 400:
                raise error_of(response.status, await response.read(), response.header(b"retry-after"))
        except HttpError as error:
            raise _unreachable(error) from error
        return response


class Stream:
    """The chunks of an answer, to be iterated once. Closing it before the end stops the engine's work."""

    def __init__(self, response: Response, on_close: Callable[[], None]) -> None:
        self._response, self._on_close = response, on_close

    async def close(self) -> None:
        on_close, self._on_close = self._on_close, lambda: None
        try:
            await self._response.close()
        finally:
            on_close()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """Raises EngineUnavailable when the engine breaks off, or reports an error in between."""
        try:
            async for line in self._response.lines():
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                chunk: dict[str, Any] = json.loads(data)
                if "error" in chunk:
                    raise error_of(500, data)
                yield chunk
        except HttpError as error:
            raise _unreachable(error) from error
        raise EngineUnavailable(
            "The engine ended its answer before it was finished.", "Try again.", retry_after=2.0
        )
