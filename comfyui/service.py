"""The service's HTTP API, as far as the pack needs it. Every failure is a ServiceError with one clear sentence."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from . import platforms

_METADATA = Path(__file__).with_name("pyproject.toml").read_text("utf-8")  # no tomllib in Python 3.10
VERSION = _METADATA.partition('\nversion = "')[2].partition('"')[0]
"""The pack's, which is ComfyLoop's: pack and service fit when the first two numbers are equal."""

WRONG_TOKEN = "The service refused the token. Set the right one in ComfyLoop's sidebar."

Json = dict[str, Any]


class ServiceError(Exception):
    """The message says what is wrong and how to mend it.

    `status` is 0 when nothing answered. `away` is true when the same call may succeed later: the service is down,
    busy, or our token is wrong; false when the content itself was refused.
    """

    def __init__(self, sentence: str, status: int = 0, code: str = "") -> None:
        super().__init__(sentence)
        self.status, self.code = status, code

    @property
    def away(self) -> bool:
        return self.status in (0, 401, 403, 408, 421, 425, 429) or self.status >= 500


@dataclass(frozen=True)
class Answer:
    text: str
    generation: str
    version: str  # "acme@17"
    finish_reason: str


@dataclass(frozen=True)
class Service:
    """Holds no connection: usable from any event loop."""

    url: str
    token: str = ""
    timeout: float = 15.0

    async def check(self) -> None:
        """Raises ServiceError unless what answers is a service that this pack fits."""
        health = await self.get("/healthz")
        theirs = str(health.get("version", ""))
        if health.get("status") != "ok":
            raise self._stranger()
        if theirs.split(".")[:2] != VERSION.split(".")[:2]:
            raise ServiceError(
                f"ComfyLoop at {self.url} is version {theirs or 'unknown'} and the node pack in ComfyUI is {VERSION}. "
                "Update the older one; `comfyloop comfyui link PATH` brings the pack that fits. Until then everything "
                "you do is kept here.",
                code="other_version",
            )

    async def get(self, path: str, **query: Any) -> Json:
        return await self._json("GET", path, params={k: str(v) for k, v in query.items() if v not in (None, "")})

    async def post(self, path: str, body: Json) -> Json:
        return await self._json("POST", path, json=body)

    async def wake(self, model: str) -> Json:
        """Have the engine behind a model's name awake before it is asked."""
        return await self._json("POST", "/wake_up", params={"model": model})

    async def send_feedback(self, items: Sequence[Json]) -> Json:
        """All are stored or none; sending an id again stores nothing twice."""
        return await self.post("/v1/feedback", {"items": list(items)})

    async def send_image(self, data: bytes, media_type: str = "image/png") -> str:
        """Returns its SHA-256."""
        answer = await self._json("POST", "/v1/images", data=data, headers={"Content-Type": media_type})
        return str(answer["sha256"])

    async def rank(self, project: str, pictures: Sequence[bytes]) -> Json:
        """Store pictures, and order them by what the project's picks and ratings say of taste: the best first."""
        hashes = [await self.send_image(data) for data in pictures]
        return await self._json("POST", "/v1/taste/rank", params={"project": project}, json={"images": hashes})

    async def image_adapter(self, project: str, number: int, target: Path) -> None:
        """Download a version's image LoRA. `target` appears whole: a loaded LoRA is memory-mapped.

        Raises OSError where it cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        path, digest = f"/v1/versions/{number}/image-adapter", hashlib.sha256()
        try:
            async with self._request("GET", path, timeout=600, params={"project": project}) as response:
                with await asyncio.to_thread(temporary.open, "wb") as file:
                    async for chunk in response.content.iter_chunked(2**20):
                        digest.update(chunk)
                        await asyncio.to_thread(file.write, chunk)
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
                if response.headers.get("ETag") != f'"{digest.hexdigest()}"':
                    raise ServiceError(f"The image LoRA of {project}@{number} arrived damaged. Run again.")
            await asyncio.to_thread(platforms.replace, temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    async def chat(self, body: Json, on_text: Callable[[str], None]) -> Answer:
        """Stream an answer; `on_text` is given all of it so far, and may raise to stop the model as well."""
        said: list[str] = []
        finish = "stop"
        async with self._request(
            "POST", "/v1/chat/completions", timeout=600, json={**body, "stream": True}
        ) as response:
            async for event in _events(response):
                if "error" in event:
                    raise ServiceError(_sentence(event), 500, event["error"].get("code", ""))
                for choice in event.get("choices", ()):
                    text = choice["delta"].get("content")
                    if text:
                        said.append(text)
                        on_text("".join(said))
                    finish = choice.get("finish_reason") or finish
            generation = response.headers.get("X-ComfyLoop-Generation", "")
            version = response.headers.get("X-ComfyLoop-Version", "")
        if not generation:
            raise self._stranger()
        return Answer("".join(said), generation, version, finish)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Json]]:
        """The service's events of all projects, from now on."""
        async with self._session(None) as session:
            try:
                async with session.ws_connect(f"{self.url.rstrip('/')}/v1/events", heartbeat=20) as socket:
                    yield _socket_events(socket)
            except (asyncio.TimeoutError, aiohttp.ClientError, ConnectionError) as error:
                raise self._unreachable(error) from error

    async def _json(self, method: str, path: str, **options: Any) -> Json:
        async with self._request(method, path, timeout=self.timeout, **options) as response:
            try:
                answer = await response.json()
            except (ValueError, aiohttp.ContentTypeError):
                answer = None
            if not isinstance(answer, dict):
                raise self._stranger()
            return answer

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, timeout: float, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self._session(timeout) as session:
            try:
                async with session.request(method, self.url.rstrip("/") + path, **options) as response:
                    if response.status >= 400:
                        raise await self._refusal(response)
                    yield response
            except (asyncio.TimeoutError, aiohttp.ClientError, ConnectionError) as error:
                raise self._unreachable(error) from error

    def _session(self, timeout: float | None) -> aiohttp.ClientSession:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        # no limit for connecting alone: a process that loads a model may not get to it for long
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=None)
        return aiohttp.ClientSession(headers=headers, timeout=limits, trust_env=False)

    async def _refusal(self, response: aiohttp.ClientResponse) -> ServiceError:
        try:
            body = await response.json()
            sentence, code = _sentence(body), str(body["error"].get("code", ""))
        except (ValueError, KeyError, TypeError, AttributeError, aiohttp.ClientError):
            sentence = f"{self.url} answered {response.status} without a reason. Is it a ComfyLoop service?"
            return ServiceError(sentence, response.status if response.status >= 500 else 502)
        if response.status in (401, 403):
            sentence = WRONG_TOKEN
        return ServiceError(sentence, response.status, code)

    def _stranger(self) -> ServiceError:
        return ServiceError(
            f"What answers at {self.url} is not a ComfyLoop service. Check the URL in the sidebar.", 502
        )

    def _unreachable(self, error: BaseException) -> ServiceError:
        if isinstance(error, asyncio.TimeoutError):
            return ServiceError(f"ComfyLoop at {self.url} did not answer in time. See `comfyloop status`.")
        if isinstance(error, aiohttp.WSServerHandshakeError):
            return ServiceError(WRONG_TOKEN, 401) if error.status in (401, 403) else self._stranger()
        return ServiceError(f"ComfyLoop is not running at {self.url}. Start it with `comfyloop up`.")


def _sentence(body: Json) -> str:
    error = body["error"]
    return f"{error['message']} {error.get('hint') or error.get('mend') or ''}".strip()


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Json]:
    async for line in response.content:
        if line.startswith(b"data: "):
            data = line[6:].strip()
            if data == b"[DONE]":
                return
            try:
                yield json.loads(data)
            except ValueError:
                break
    raise ServiceError("The service broke off in the middle of the answer. Run the node again.")


async def _socket_events(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[Json]:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            yield json.loads(message.data)
