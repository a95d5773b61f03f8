"""Ports that this process alone listens on."""

from __future__ import annotations

import socket
import sys


def take_alone(listener: socket.socket) -> None:
    """Before it is bound: no other process shall answer on this port, and one that we had a moment ago is free again.

    `SO_REUSEADDR` means the second of these everywhere but under Windows, where it lets two processes listen on one
    port, and neither hears of the other.
    """
    if sys.platform == "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
