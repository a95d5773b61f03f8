"""Python clients of a running service, for scripts, the CLI and the demo: `Client` waits, `AsyncClient` is awaited.

Chat itself is OpenAI's API: use the official `openai` client with `base_url=client.url + "/v1"`; here `ask`
is a short form of it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import httpx

from comfyloop.client import calls
from comfyloop.client.calls import Answer, Call, Service
from comfyloop.errors import EngineUnavailable

__all__ = ["Answer", "AsyncClient", "Client"]

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(call: Callable[Concatenate[Service, P], Call[T]]) -> Callable[Concatenate[Client, P], T]:
    @wraps(call)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = call(self, *args, **kwargs)
        try:
            request = next(steps)
            while True:
                try:
                    response = self._http.request(request.method, request.path, **request.options)
                except (httpx.HTTPError, UnicodeEncodeError) as error:
                    request = steps.throw(calls.unreachable(self, error))
                else:
                    request = steps.send(response)
        except StopIteration as done:
            return cast(T, done.value)

    return _shown_as_method(method, call)


def _awaited(
    call: Callable[Concatenate[Service, P], Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @wraps(call)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = call(self, *args, **kwargs)
        try:
            request = next(steps)
            while True:
                try:
                    response = await self._http.request(request.method, request.path, **request.options)
                except (httpx.HTTPError, UnicodeEncodeError) as error:
                    request = steps.throw(calls.unreachable(self, error))
                else:
                    request = steps.send(response)
        except StopIteration as done:
            return cast(T, done.value)

    return _shown_as_method(method, call)


def _shown_as_method(method: Callable[P, T], call: Callable[..., Any]) -> Callable[P, T]:
    """What `help` shows: a method that returns what the call comes to."""
    signature = inspect.signature(call)
    _, *parameters = signature.parameters.values()
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    returned = str(signature.return_annotation).removeprefix("Call[").removesuffix("]")
    method.__signature__ = inspect.Signature([own, *parameters], return_annotation=returned)  # type: ignore[attr-defined]
    return method


class Client(Service):
    """Calls to one service. Raises the errors of `comfyloop.errors` with the service's own sentences.

    Args:
        url: Of the service, e.g. "http://127.0.0.1:8265".
        token: The service's token, where it asks for one.
        project: The project that calls are about; None: the service's default.
        timeout: Seconds that a request may take.
    """

    def __init__(
        self, url: str, token: str = "", project: str | None = None, *, timeout: float = 600.0
    ) -> None:
        super().__init__(url, token, project, timeout=timeout)
        self._http = httpx.Client(**self._connection)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    @contextlib.contextmanager
    def _streamed(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        try:
            with self._http.stream(method, path, **options) as response:
                if response.status_code >= 400:
                    response.read()
                    raise calls.error_of(response)
                yield response
        except httpx.HTTPError as error:
            raise EngineUnavailable(
                f"The service at {self.url} broke off.", "Try again; `comfyloop status` says how it does."
            ) from error

    def pages(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """All items of a listing, page after page."""
        after: dict[str, Any] | None = query
        while after is not None:
            items, after = self._page(path, after)
            yield from items

    call = _blocking(calls.call)
    ask = _blocking(calls.ask)
    send_feedback = _blocking(calls.send_feedback)
    upload_image = _blocking(calls.upload_image)
    put_bytes = _blocking(calls.put_bytes)
    default_project = _blocking(calls.default_project)
    generation = _blocking(calls.generation)
    preferences = _blocking(calls.preferences)
    flags = _blocking(calls.flags)
    answer_flag = _blocking(calls.answer_flag)
    queue = _blocking(calls.queue)
    decide = _blocking(calls.decide)
    loop = _blocking(calls.loop)
    start_turn = _blocking(calls.start_turn)
    forget = _blocking(calls.forget)
    snapshot = _blocking(calls.snapshot)
    versions = _blocking(calls.versions)
    image_adapter = _blocking(calls.image_adapter)
    gate = _blocking(calls.gate)
    gate_report = _blocking(calls.gate_report)
    sheet = _blocking(calls.sheet)
    promote = _blocking(calls.promote)
    rollback = _blocking(calls.rollback)
    run_log = _blocking(calls.run_log)
    ready = _blocking(calls.ready)
    is_sleeping = _blocking(calls.is_sleeping)
    _page = _blocking(calls.page)


class AsyncClient(Service):
    """The same calls, awaited: for programs that do other work meanwhile, or many calls at once.

    Args:
        url: Of the service, e.g. "http://127.0.0.1:8265".
        token: The service's token, where it asks for one.
        project: The project that calls are about; None: the service's default.
        timeout: Seconds that a request may take.
    """

    def __init__(
        self, url: str, token: str = "", project: str | None = None, *, timeout: float = 600.0
    ) -> None:
        super().__init__(url, token, project, timeout=timeout)
        self._http = httpx.AsyncClient(**self._connection)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def pages(self, path: str, **query: Any) -> AsyncIterator[dict[str, Any]]:
        """All items of a listing, page after page."""
        after: dict[str, Any] | None = query
        while after is not None:
            items, after = await self._page(path, after)
            for item in items:
                yield item

    call = _awaited(calls.call)
    ask = _awaited(calls.ask)
    send_feedback = _awaited(calls.send_feedback)
    upload_image = _awaited(calls.upload_image)
    put_bytes = _awaited(calls.put_bytes)
    default_project = _awaited(calls.default_project)
    generation = _awaited(calls.generation)
    preferences = _awaited(calls.preferences)
    flags = _awaited(calls.flags)
    answer_flag = _awaited(calls.answer_flag)
    queue = _awaited(calls.queue)
    decide = _awaited(calls.decide)
    loop = _awaited(calls.loop)
    start_turn = _awaited(calls.start_turn)
    forget = _awaited(calls.forget)
    snapshot = _awaited(calls.snapshot)
    versions = _awaited(calls.versions)
    image_adapter = _awaited(calls.image_adapter)
    gate = _awaited(calls.gate)
    gate_report = _awaited(calls.gate_report)
    sheet = _awaited(calls.sheet)
    promote = _awaited(calls.promote)
    rollback = _awaited(calls.rollback)
    run_log = _awaited(calls.run_log)
    ready = _awaited(calls.ready)
    is_sleeping = _awaited(calls.is_sleeping)
    _page = _awaited(calls.page)
