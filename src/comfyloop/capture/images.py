"""Accepts an image: checks its actual type, that it is complete, and that it is not too large."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from io import BytesIO

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from comfyloop.capture.image_header import ImageHeader, read_header
from comfyloop.errors import InvalidInput, TooLarge
from comfyloop.media.decoding import too_narrow, without_notes
from comfyloop.records import Record, Sha256
from comfyloop.settings import Settings
from comfyloop.store import Store

# Pillow's decoders by name: Image.open would apply limits of its own, which our settings could not raise.
_DECODERS: dict[str, Callable[[BytesIO], ImageFile]] = {
    "image/png": PngImageFile,
    "image/jpeg": JpegImageFile,
    "image/webp": WebPImageFile,
    "image/gif": GifImageFile,
    "image/bmp": BmpImageFile,
}
MOST_SCANS = 100
"""A progressive JPEG of the usual kind has 10; each is another pass over all of it."""
_PNG_END = b"IEND\xaeB`\x82"
# A decoded image takes some hundreds of MB at the limits: two at a time, however many are sent.
_decoding = threading.BoundedSemaphore(2)


class ImageInfo(Record):
    sha256: Sha256
    media_type: str
    width: int  # pixels
    height: int  # pixels
    bytes: int


def intake(data: bytes, settings: Settings) -> ImageInfo:
    """Check an image as it was sent. The limits are checked before it is decoded, and it is decoded once in
    full (of an animation the first picture) to know that it is whole. Its type is what its bytes say: names and
    declared types are often wrong.

    Raises:
        InvalidInput: Empty, broken off, damaged or of a type that is not taken.
        TooLarge: More bytes, a longer side or more pixels than the limits.
    """
    if not data:
        raise InvalidInput("The image has 0 bytes.", "Send the whole file.")
    if len(data) > settings.max_image_bytes:
        raise TooLarge(
            f"The image has {len(data)} bytes; {settings.max_image_bytes} are allowed.",
            "Save it smaller, or raise COMFYLOOP_MAX_IMAGE_BYTES.",
        )
    header = read_header(data)
    _check_size(header, settings)
    _decode(data, header)
    return ImageInfo(
        sha256=hashlib.sha256(data).hexdigest(),
        media_type=header.media_type,
        width=header.width,
        height=header.height,
        bytes=len(data),
    )


def store_image(store: Store, data: bytes, settings: Settings) -> ImageInfo:
    """Check an image and keep it; on return it is on the disk (fsync). The same bytes again are kept once.

    Raises:
        InvalidInput, TooLarge: As `intake`.
        StorageError: The blob store refused.
    """
    info = intake(data, settings)
    store.blobs.put(data, info.media_type)
    return info


def _check_size(header: ImageHeader, settings: Settings) -> None:
    size = f"{header.width} x {header.height} pixels"
    if header.width < 1 or header.height < 1:
        raise InvalidInput(f"The image has {size}.", "Save the image again.")
    if max(header.width, header.height) > settings.max_image_side:
        raise TooLarge(
            f"The image has {size}; its longer side may have {settings.max_image_side}.",
            "Scale it down, or raise COMFYLOOP_MAX_IMAGE_SIDE.",
        )
    if header.width * header.height > settings.max_image_pixels:
        raise TooLarge(
            f"The image has {size}, more than the {settings.max_image_pixels} in all that are allowed.",
            "Scale it down, or raise COMFYLOOP_MAX_IMAGE_PIXELS.",
        )
    if problem := too_narrow(header.width, header.height):
        raise TooLarge(f"The image {problem}.", "Cut it to what is to be seen.")


def _decode(data: bytes, header: ImageHeader) -> None:
    try:
        with _decoding, _DECODERS[header.media_type](BytesIO(without_notes(data))) as image:
            if header.media_type == "image/jpeg" and data.count(b"\xff\xda") > MOST_SCANS:
                raise ValueError(f"it comes in more than {MOST_SCANS} passes")
            size = image.size
            if size == (header.width, header.height):
                # Read to its end, which tells whether it is whole; the pixels themselves are not needed.
                image.draft("RGB", (1, 1))
                image.load()
        if header.media_type == "image/png" and _PNG_END not in data:  # all its pixels, yet not all of it
            raise EOFError("its last chunk is missing")
    except Exception as error:  # decoders raise whatever the damage leads them to
        raise InvalidInput(
            f"The image ({header.media_type}) is damaged or broken off: {error}.",
            "Send the whole file, or save the image again.",
        ) from error
    if size != (header.width, header.height):
        said = f"{header.width} x {header.height}"
        raise InvalidInput(
            f"The image says that it has {said} pixels, but has {size[0]} x {size[1]}.",
            "Save the image again.",
        )
