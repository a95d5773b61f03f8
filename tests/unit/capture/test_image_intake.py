"""Images: the real type, the size before the pixels, whole or refused."""

from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from comfyloop.capture import images
from comfyloop.capture.image_header import read_header
from comfyloop.errors import InvalidInput, TooLarge
from comfyloop.media import data_urls
from comfyloop.settings import Settings
from comfyloop.store import open_store

SETTINGS = Settings()


def encoded(format: str, size: tuple[int, int] = (31, 17), mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    picture = Image.effect_noise(size, 60).convert(mode)
    picture.save(out, format, **options)
    return out.getvalue()


GOOD = {
    "png": encoded("PNG"),
    "png with alpha": encoded("PNG", mode="RGBA"),
    "png with a palette": encoded("PNG", mode="P"),
    "jpeg": encoded("JPEG"),
    "jpeg, progressive": encoded("JPEG", progressive=True),
    "jpeg in CMYK": encoded("JPEG", mode="CMYK"),
    "jpeg with exif": encoded("JPEG", exif=b"Exif\x00\x00" + bytes(500)),
    "webp": encoded("WEBP"),
    "webp, lossless": encoded("WEBP", lossless=True),
    "webp with alpha": encoded("WEBP", mode="RGBA"),
    "gif": encoded("GIF", mode="P"),
    "bmp": encoded("BMP"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_images_are_described(name: str) -> None:
    data = GOOD[name]
    info = images.intake(data, SETTINGS)
    assert info.media_type == f"image/{name.split()[0].strip(',')}"
    assert (info.width, info.height, info.bytes) == (31, 17, len(data))
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert data_urls.media_type(data) == info.media_type


@pytest.mark.parametrize("name", GOOD)
def test_an_image_cut_in_half_is_refused(name: str) -> None:
    data = GOOD[name]
    for end in (len(data) // 2, len(data) - 20):
        with pytest.raises(InvalidInput, match=r"broken off|breaks off"):
            images.intake(data[:end], SETTINGS)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(GOOD)), end=st.integers(0, 60), junk=st.binary(max_size=40))
def test_no_bytes_make_it_fail_otherwise(name: str, end: int, junk: bytes) -> None:
    data = GOOD[name][:end] + junk
    try:
        images.intake(data, SETTINGS)
    except InvalidInput as error:
        assert error.message and error.hint


@settings(max_examples=200, deadline=None)
@given(start=st.sampled_from([b"", b"\xff\xd8\xff", b"RIFF0000WEBPVP8X", b"BM", b"GIF89a"]), rest=st.binary())
def test_no_header_makes_it_fail_otherwise(start: bytes, rest: bytes) -> None:
    try:
        header = read_header(start + rest)
    except InvalidInput:
        return
    assert header.width >= 0 and header.height >= 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>404</html>", "is an HTML page"),
        (b"\n  <html>", "is an HTML page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG or XML"),
        (b"%PDF-1.7 ...", "a PDF"),
        (b'{"error": "no"}', "JSON"),
        (b"just words", "plain text"),
        (b"\x00\x00\x00\x20ftypavif", "AVIF"),
        (encoded("TIFF"), "a TIFF image"),
        (b"\x01\x02\xfe\xff" * 9, "of an unknown type"),
        (b"\x89PNG\r\n\x1a\n", "header"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "breaks off within its header"),
        (b"\xff\xd8\xff\xd9", "no frame header"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        images.intake(data, SETTINGS)
    assert refused.value.hint


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says this size, with hardly any pixels behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def webp_of(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + bytes(4) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + bytes(40)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png_of(50_000, 10), "50000 x 10 pixels; its longer side may have 16384"),
        (png_of(10, 50_000), "10 x 50000"),
        (png_of(16_000, 16_000), "more than the 64000000 in all"),
        (png_of(2**31 - 1, 2**31 - 1), "longer side"),
        (webp_of(16_384, 16_384), "more than the 64000000 in all"),
        (webp_of(2**24, 1), "longer side"),
        (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(20), "longer side"),
        (b"BM" + bytes(12) + struct.pack("<Iii", 40, 100_000, -100_000) + bytes(40), "100000 x 100000"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff" + bytes(20), "65535 x 65535"),
    ],
)
def test_too_many_pixels_are_refused_before_they_take_memory(data: bytes, words: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match=words):
            images.intake(data, SETTINGS)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_image_of_no_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="0"):
        images.intake(png_of(*size), SETTINGS)


def test_limits_are_settings() -> None:
    data = GOOD["png"]
    with pytest.raises(TooLarge, match=f"{len(data)} bytes; 100 are allowed"):
        images.intake(data, Settings(max_image_bytes=100))
    with pytest.raises(TooLarge, match="longer side may have 30"):
        images.intake(data, Settings(max_image_side=30))
    with pytest.raises(TooLarge, match="500 in all"):
        images.intake(data, Settings(max_image_pixels=500))


def test_a_gif_whose_picture_is_larger_than_it_says_is_refused() -> None:
    data = bytearray(encoded("GIF", size=(200, 200), mode="P"))
    data[6:10] = struct.pack("<HH", 1, 1)
    with pytest.raises(InvalidInput, match="says that it has 1 x 1 pixels, but has 200 x 200"):
        images.intake(bytes(data), SETTINGS)


def test_an_image_is_kept_once(tmp_path: Path) -> None:
    with open_store(Settings(home=tmp_path)) as store:
        info = images.store_image(store, GOOD["webp"], SETTINGS)
        assert images.store_image(store, GOOD["webp"], SETTINGS) == info
        assert store.blobs.get(info.sha256) == GOOD["webp"]
        assert list(store.blobs.list()) == [info.sha256]
        with pytest.raises(InvalidInput):
            images.store_image(store, GOOD["webp"][:-9], SETTINGS)
        assert list(store.blobs.list()) == [info.sha256]
