"""What an image file says about itself in its first bytes: its real type and its size.

Parsed directly, since a decoder may allocate memory for all pixels before it reports the size.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from comfyloop.errors import InvalidInput


class ImageHeader(NamedTuple):
    media_type: str
    width: int  # pixels
    height: int  # pixels


_OTHERS = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM film"),
    (b"8BPS", "a Photoshop file"),
    (b"{", "JSON"),
)


def read_header(data: bytes) -> ImageHeader:
    """The type and size of an image.

    Raises:
        InvalidInput: It is of none of the types that are taken, or its header is broken off.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            if data[12:16] != b"IHDR":
                raise InvalidInput("The PNG file does not begin with its header.", "Save the image again.")
            return ImageHeader("image/png", *struct.unpack_from(">II", data, 16))
        if data.startswith(b"\xff\xd8\xff"):
            return ImageHeader("image/jpeg", *_jpeg_size(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return ImageHeader("image/webp", *_webp_size(data))
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return ImageHeader("image/gif", *struct.unpack_from("<HH", data, 6))
        if data[:2] == b"BM":
            return ImageHeader("image/bmp", *_bmp_size(data))
    except (struct.error, IndexError):
        raise InvalidInput("The image breaks off within its header.", "Send the whole file.") from None
    raise InvalidInput(
        f"The file is {_what(data)}, not an image that can be used.",
        "Send PNG, JPEG, WebP, GIF or BMP.",
    )


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise InvalidInput("The JPEG file is damaged before its picture begins.", "Save the image again.")
        while data[at] == 0xFF:  # any number of fill bytes
            at += 1
        marker = data[at]
        at += 1
        if marker in (0x01, *range(0xD0, 0xD9)):  # markers without a body
            continue
        if marker in (0xD9, 0xDA):
            raise InvalidInput("The JPEG file has no frame header.", "Save the image again.")
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        at += max(length, 2)


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        wide, high = data[24:27], data[27:30]
        if len(high) < 3:
            raise IndexError
        return int.from_bytes(wide, "little") + 1, int.from_bytes(high, "little") + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if len(data) < 30:
        raise IndexError
    raise InvalidInput("The WebP file has no picture in it.", "Save the image again.")


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:  # OS/2
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # a negative height: rows from the top


def _what(data: bytes) -> str:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if start.startswith((b"<svg", b"<?xml")):
        return "an SVG or XML text"
    if data[4:12] in (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "an AVIF or HEIC image"
    if data[4:8] == b"ftyp":
        return "an MP4 film"
    for mark, name in _OTHERS:
        if data.startswith(mark):
            return name
    try:
        data[:512].decode("ascii")
    except UnicodeDecodeError:
        return "of an unknown type"
    return "plain text"
