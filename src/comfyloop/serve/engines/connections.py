"""Kept-alive connections from the gateway to engines.

httpx and its pool look at every open connection, with a system call each, for every request: after a burst that
alone costs more than the rest of the gateway. Here the connection used last is used next, which is found at once.
The connections themselves are httpcore's.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import httpcore

IDLE_SECONDS = 3.0
"""A connection that nobody used for so long is not used again: uvicorn, on which engines run, closes it at 5."""
MOST_IDLE = 256
HEADERS = [(b"Content-Type", b"application/json"), (b"Accept", b"*/*")]

HttpError = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
)


class Response:
    """A response whose body is still to be read. `close` it, whatever happens."""

    def __init__(
        self,
        response: httpcore.Response,
        connection: httpcore.AsyncHTTPConnection,
        idle: list[httpcore.AsyncHTTPConnection],
    ) -> None:
        self.status = response.status
        self._response = response
        self._connection = connection
        self._idle = idle
        self._closed = False

    def header(self, name: bytes) -> str | None:
        """The value of a header, `name` in lower case."""
        for key, value in self._response.headers:
            if key.lower() == name:
                return value.decode("latin-1")
        return None

    async def read(self) -> bytes:
        """The whole body; the connection is free again."""
        try:
            return b"".join([piece async for piece in self.pieces()])
        finally:
            await self.close()

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._response.aiter_stream():
            yield piece

    async def lines(self) -> AsyncIterator[bytes]:
        """Lines of the body as they come, without their ends."""
        rest = b""
        async for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r")
        if rest:
            yield rest

    async def close(self) -> None:
        """A body that was not read to its end closes the connection, by which the engine learns of it."""
        if self._closed:
            return
        self._closed = True
        await self._response.aclose()
        if self._connection.is_idle() and len(self._idle) < MOST_IDLE:
            self._idle.append(self._connection)
        else:
            await self._connection.aclose()


class Connections:
    """Connections to any number of engines. Bound to the event loop that uses it."""

    def __init__(self, connect_seconds: float, answer_seconds: float) -> None:
        self._idle: dict[str, list[httpcore.AsyncHTTPConnection]] = {}
        self._timeout = {
            "timeout": {
                "connect": connect_seconds,
                "read": answer_seconds,
                "write": answer_seconds,
                "pool": connect_seconds,
            }
        }
        self._ssl: ssl.SSLContext | None = None

    async def post(self, url: str, body: bytes, secret: str = "") -> Response:
        """Send JSON, with `secret` as its bearer token, and wait for the status. Raises one of `HttpError`."""
        target = httpcore.URL(url)
        host = target.host if target.port is None else target.host + b":%d" % target.port
        headers = [(b"Host", host), *HEADERS, (b"Content-Length", b"%d" % len(body))]
        if secret:
            headers.append((b"Authorization", b"Bearer " + secret.encode()))
        request = httpcore.Request("POST", target, headers=headers, content=body, extensions=self._timeout)
        idle = self._idle.setdefault(url, [])
        while True:
            used = await self._used(idle)
            connection = used or self._new(target.origin)
            try:
                return Response(await connection.handle_async_request(request), connection, idle)
            except (httpcore.NetworkError, httpcore.RemoteProtocolError):
                await connection.aclose()
                if used is None:
                    raise
                # The engine closed it just as we sent: it has not read the request, a new connection serves.
            except BaseException:
                await connection.aclose()
                raise

    async def _used(self, idle: list[httpcore.AsyncHTTPConnection]) -> httpcore.AsyncHTTPConnection | None:
        while idle:
            connection = idle.pop()
            if not connection.has_expired():  # also told by a system call: the engine closed it
                return connection
            await connection.aclose()
        return None

    def _new(self, origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection:
        if origin.scheme == b"https" and self._ssl is None:
            self._ssl = ssl.create_default_context()
        return httpcore.AsyncHTTPConnection(
            origin, ssl_context=self._ssl, keepalive_expiry=IDLE_SECONDS, http1=True, http2=False
        )

    async def close(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                await connection.aclose()
        self._idle.clear()
