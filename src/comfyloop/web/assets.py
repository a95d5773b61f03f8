"""Style sheets, scripts and fonts, read once and kept packed.

The address of most changes with its content, so that a browser keeps it for ever. Our own modules import each other by
plain names, of which each must stay one module: they are asked for again each time. Fonts have a version in their name.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from comfyloop.errors import NotFound

router = APIRouter()

FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_PACKED = {".css", ".js", ".svg"}
_FOR_EVER = "public, max-age=31536000, immutable"


class Asset(NamedTuple):
    data: bytes
    packed: bytes | None
    media_type: str
    tag: str


@cache
def _assets() -> dict[str, Asset]:
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix not in _TYPES:
            continue
        data = path.read_bytes()
        packed = gzip.compress(data, 9, mtime=0) if path.suffix in _PACKED else None
        tag = hashlib.sha256(data).hexdigest()[:16]
        found[path.relative_to(FOLDER).as_posix()] = Asset(data, packed, _TYPES[path.suffix], tag)
    return found


def address(name: str) -> str:
    """Where a browser gets an asset."""
    found = _assets()[name]
    plain = name.endswith(".woff2") or (name.endswith(".js") and not name.startswith("vendor/"))
    return f"/static/{name}" if plain else f"/static/{name}?{found.tag}"


@router.get("/static/{name:path}")
def asset(name: str, request: Request) -> Response:
    found = _assets().get(name)
    if found is None:
        raise NotFound(f"There is no file {name[:100]!r} of the pages.")
    headers = {"ETag": f'"{found.tag}"', "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
    same = request.url.query == found.tag or name.endswith(".woff2")
    headers["Cache-Control"] = _FOR_EVER if same else "no-cache"
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    data = found.data
    if found.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        data, headers["Content-Encoding"] = found.packed, "gzip"
    return Response(data, media_type=found.media_type, headers=headers)
