"""Bind a port and serve the API on it."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import sys
import threading

import uvicorn

from comfyloop import platforms
from comfyloop.errors import Conflict, InvalidInput
from comfyloop.serve import collector, patience
from comfyloop.serve.api.app import Front, create_app
from comfyloop.serve.api.origin import is_loopback
from comfyloop.serve.api.services import Services

DRAIN_SECONDS = 10
"""Open requests may finish for so long after the service was told to stop."""
SWITCH_SECONDS = 0.0005


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on `host`; port 0 takes a free one (`getsockname()[1]` tells which).

    Raises:
        Conflict: The port is in use.
        InvalidInput: The address is not this machine's, or the port may not be opened.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidInput(
            f"There is no address {host!r} ({error.strerror}).", "Choose another host."
        ) from error
    listener = socket.socket(family, kind, proto)
    platforms.take_alone(listener)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"Port {port} on {host} is in use.",
                "Stop what listens there (another ComfyLoop?), or choose another port with --port.",
            ) from error
        if error.errno == errno.EACCES:
            raise InvalidInput(
                f"Port {port} may not be opened by this user.", "Choose one above 1023."
            ) from error
        raise InvalidInput(
            f"Cannot listen on {host}:{port}: {error.strerror}.", "Choose another host."
        ) from error
    return listener


def server(services: Services, front: Front | None = None) -> uvicorn.Server:
    """The configured server; `server.run(sockets=[...])` serves, `should_exit = True` stops it."""
    # The threads that write to the database may keep the event loop waiting for so long each time.
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(services, front)
    collector.settle()
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=patience.protocol(most=min(patience.MOST_WAITING, platforms.allow_files() // 2)),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            timeout_keep_alive=75,
            ws_max_size=services.settings.max_body_bytes,
            ws_per_message_deflate=False,  # a small frame would become a large one
        )
    )


def run(services: Services, listener: socket.socket | None = None, front: Front | None = None) -> None:
    """Serve until the process is told to stop. `listener` is what `bind` gave; without one, bind here.

    Raises:
        InvalidInput: It would be open to others without a token.
    """
    sock = listener or bind(services.settings.host, services.settings.port)
    if not is_loopback(sock.getsockname()[0]) and not services.settings.token:
        raise InvalidInput(
            "Other machines can reach this address, and no token is asked.",
            "Set COMFYLOOP_TOKEN, or start the service with `comfyloop up`, which makes one.",
        )
    served = server(services, front)
    # uvicorn's own handlers raise the signal again when it has stopped, which ends the process before it has tidied up.
    vars(served)["capture_signals"] = contextlib.nullcontext

    def leave(told: int, _: object) -> None:
        served.force_exit = served.should_exit and told == signal.SIGINT  # the second Ctrl-C
        served.should_exit = True

    if threading.current_thread() is threading.main_thread():
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, leave)
    served.run(sockets=[sock])
