"""Images as data: URLs, which is how they travel to and from engines."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from comfyloop.errors import InvalidInput

PIECE = 4 * 2**18
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)


def media_type(data: bytes) -> str:
    """The type of an image by its first bytes, whatever its name says; "" for none of those that are taken."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), "")


def encode(data: bytes) -> str:
    kind = media_type(data) or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def is_one(url: str) -> bool:
    """Whether a text is a data: URL. Case does not matter in its scheme, nor in the word before its body."""
    return url[:5].lower() == "data:"


def decode(url: str, name: str = "The image") -> bytes:
    """The bytes in a data: URL; its declared type is not looked at.

    Args:
        name: What an error calls it.

    Raises:
        InvalidInput: It is not a data: URL, or its base64 is broken.
    """
    head, comma, body = url.partition(",")
    if not is_one(url) or not comma:
        raise InvalidInput(f"{name} is not a data: URL.", "It reads data:image/png;base64,....")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    # As browsers read it: in lines too, which `base64` and Python's encodebytes write, and without its padding.
    for blank in " \t\r\n\f":
        body = body.replace(blank, "")
    if len(body) % 4:
        body += "=" * (-len(body) % 4)
    try:
        if "=" in body[:-2]:
            raise ValueError("Excess data after padding")
        # In pieces: one alone would keep every other thread waiting while 20 MB of it are read.
        return b"".join(
            base64.b64decode(body[begin : begin + PIECE], validate=True)
            for begin in range(0, len(body), PIECE)
        )
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{name} is not valid base64: {error}.") from error
