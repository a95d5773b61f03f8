"""Images as bytes that may leave ComfyUI: PNG without metadata, in which ComfyUI keeps the workflow, keys and all."""

from __future__ import annotations

import hashlib
import io
import struct
from typing import Any

from PIL import Image

LONGEST_SIDE = 16_384
MOST_PIXELS = 64_000_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD"}


class ImageError(ValueError):
    """The message is a sentence for the node."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_size(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise ImageError("The image is empty (0 pixels). Connect an image with something in it.")
    if max(width, height) > LONGEST_SIDE or width * height > MOST_PIXELS:
        raise ImageError(
            f"The image is {width} x {height} pixels; at most {LONGEST_SIDE} a side and {MOST_PIXELS // 10**6} "
            "megapixels are taken. Scale it down first."
        )


def from_tensor(batch: Any) -> list[bytes]:
    """PNG files of ComfyUI's IMAGE: floats of 0..1, shape [batch, height, width, channels]."""
    if batch.ndim != 4 or batch.shape[0] == 0:
        raise ImageError("The image is empty (a batch of 0). Connect an image with something in it.")
    check_size(int(batch.shape[2]), int(batch.shape[1]))
    files = []
    for image in batch:
        pixels = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", compress_level=1)
        files.append(buffer.getvalue())
    return files


def without_metadata(data: bytes) -> bytes:
    """The same picture as PNG without text chunks and EXIF."""
    if not data:
        raise ImageError("The image file is empty (0 bytes).")
    if data.startswith(_SIGNATURE):
        return _plain_png(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(*image.size)
            buffer = io.BytesIO()
            image.convert("RGBA" if "A" in image.getbands() else "RGB").save(buffer, "PNG", compress_level=1)
            return buffer.getvalue()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"The image file cannot be read ({error}).") from error


def _plain_png(data: bytes) -> bytes:
    out, at = [_SIGNATURE], len(_SIGNATURE)
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            break
        if kind == b"IHDR":
            check_size(*struct.unpack(">II", data[at + 8 : at + 16]))
        if kind in _KEPT:
            out.append(data[at:end])
        if kind == b"IEND":
            return b"".join(out)
        at = end
    raise ImageError("The PNG file is cut short.")
