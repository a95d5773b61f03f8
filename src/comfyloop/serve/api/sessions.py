"""A browser in which the token was given: a cookie that says until when, signed with a key made of the token.

The cookie goes to every server of this host, whatever its port, so that it holds nothing from which the token could be
had; another token ends all sessions. Pages of other sites cannot use it: `origin.Guarded` lets none of them call.
"""

from __future__ import annotations

import hashlib
import hmac
import time

from starlette.types import Scope

SECONDS = 30 * 24 * 3600
_PURPOSE = b"comfyloop session"


def cookie(scope: Scope) -> str:
    """Its name: browsers keep cookies by host alone, and another service may listen on another port."""
    server = scope.get("server") or ("", 0)
    return f"comfyloop_{server[1] or 0}"


def begin(token: str, now: float | None = None) -> str:
    """The value of a session that begins now."""
    until = str(int((time.time() if now is None else now) + SECONDS))
    return f"{until}.{_signature(token, until)}"


def holds(value: str, token: str, now: float | None = None) -> bool:
    """Whether `begin` gave this value, for this token, and its time is not over."""
    until, _, signature = value.partition(".")
    if not until.isascii() or not until.isdigit() or len(until) > 12:
        return False
    if not hmac.compare_digest(signature.encode("utf-8", "replace"), _signature(token, until).encode()):
        return False
    return int(until) > (time.time() if now is None else now)


def _signature(token: str, until: str) -> str:
    key = hmac.digest(token.encode(), _PURPOSE, hashlib.sha256)
    return hmac.new(key, until.encode(), hashlib.sha256).hexdigest()
