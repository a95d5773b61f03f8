"""Who may call: no web page but those that are allowed, under no name but this service's own. Plain ASGI.

A browser sends requests wherever a page says. It tells where the page came from (`Origin`, `Sec-Fetch-Site`), and the
name under which it looked for us (`Host`): a name of somebody else's that now leads to this address is DNS rebinding.
Programs that are no browsers send no `Origin` and are not held up.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from comfyloop.errors import ComfyLoopError
from comfyloop.serve.api.errors import error_body
from comfyloop.settings import Settings

LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
PREFLIGHT_SECONDS = b"600"
EXPOSED = b"X-ComfyLoop-Generation, X-ComfyLoop-Version, Retry-After"


class WrongHost(ComfyLoopError):
    status, code = 421, "wrong_host"


class WrongOrigin(ComfyLoopError):
    status, code = 403, "wrong_origin"


class Guarded:
    """Refuse a name that is not ours (421) and a page of somebody else's (403); answer preflights of allowed ones."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        own = {settings.host, *settings.allowed_hosts}
        if not is_loopback(settings.host):
            own |= {socket.gethostname(), f"{socket.gethostname()}.local"}
        self._names = LOCAL_NAMES | {name.lower().rstrip(".") for name in own}
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        error = self._wrong(scope, headers)
        if error is not None:
            await _refuse(error, scope, receive, send)
            return
        origin = headers.get(b"origin", "")
        if scope["type"] == "websocket" or origin not in self._origins:
            await self.app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            response = Response(status_code=204)
            response.raw_headers = [*_allow(origin, headers)]
            await response(scope, receive, send)
        else:

            async def allowed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", ()), *_share(origin)]
                await send(message)

            await self.app(scope, receive, allowed)

    def _wrong(self, scope: Scope, headers: dict[bytes, str]) -> ComfyLoopError | None:
        host = headers.get(b"host", "")
        name = _name(host)
        if name not in self._names and not _is_address(name):
            return WrongHost(
                f"This service is not called {name[:100]!r}.",
                "Call it by its address, or add that name to the setting allowed_hosts.",
            )
        origin = headers.get(b"origin")
        if origin is None:
            # A page's picture or form of an old kind; what a person opens in a tab is no page's doing.
            foreign = headers.get(b"sec-fetch-site") in ("cross-site", "same-site")
            opened = scope.get("method") == "GET" and headers.get(b"sec-fetch-mode") == "navigate"
            if not foreign or opened:
                return None
            origin = "another site"
        elif origin in self._origins or _same(origin, host):
            return None
        return WrongOrigin(
            f"A page of {origin[:100]} may not use this service.",
            "Add its origin to the setting allowed_origins if it may.",
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host.lower() in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """The name or address in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """An address cannot be rebound: whoever calls us by one means us."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same(origin: str, host: str) -> bool:
    """A browser leaves the scheme's own port out of both; a proxy may write it into `Host` (`$host:$server_port`)."""
    scheme, _, place = origin.lower().partition("://")
    own = {"http": ":80", "https": ":443"}.get(scheme)
    return own is not None and place.removesuffix(own) == host.lower().removesuffix(own)


def _share(origin: str) -> Iterable[tuple[bytes, bytes]]:
    yield b"access-control-allow-origin", origin.encode("latin-1")
    yield b"access-control-expose-headers", EXPOSED
    yield b"vary", b"Origin"


def _allow(origin: str, asked: dict[bytes, str]) -> Iterable[tuple[bytes, bytes]]:
    yield from _share(origin)
    names = asked.get(b"access-control-request-headers") or "authorization, content-type"
    yield b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"
    yield b"access-control-allow-headers", names.encode("latin-1")
    yield b"access-control-max-age", PREFLIGHT_SECONDS
    if (
        asked.get(b"access-control-request-private-network") == "true"
    ):  # Chrome: from the internet to this network
        yield b"access-control-allow-private-network", b"true"


async def _refuse(error: ComfyLoopError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":  # closed before it is accepted: the handshake is answered 403
        await receive()
        await send({"type": "websocket.close", "code": 4403, "reason": error.message})
        return
    await JSONResponse(error_body(error), error.status)(scope, receive, send)
