"""What people and programs send wrongly, to a whole service with a real model: each a 4xx with a sentence."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.acceptance.conftest import RunningService

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def http(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("bad-input") / "home"
    service = RunningService(
        home,
        project="acme",
        model=tiny_vlm,
        dtype="float32",
        engine_threads=1,
        max_body_bytes=2_000_000,
        allowed_image_hosts='["localhost"]',
    )
    try:
        service.start()
        service.wait_ready()
        with httpx.Client(base_url=service.client.url, timeout=60, trust_env=False) as client:
            yield client
    finally:
        service.stop()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG of any size in its header, whose rows may be much fewer bytes than that."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "JPEG")
    return out.getvalue()


IMAGES = {
    "of 0 bytes": (data_url(b""), 400, "0 bytes"),
    "that is a web page": (data_url(b"<html>no</html>"), 400, ""),
    "that is not base64": ("data:image/png;base64,%%%", 400, "base64"),
    "without data": ("data:image/png", 400, "not a data: URL"),
    "of 50,000 pixels a side": (data_url(png(50_000, 50_000)), 413, "50000"),
    "that unpacks to gigabytes": (data_url(png(8_000, 8_000, bytes(1_000_000))), 400, ""),
    "that is cut off": (data_url(jpeg()[:-200]), 400, ""),
    "that was never uploaded": ("comfyloop://" + "a" * 64, 404, "uploaded"),
    "on this machine": ("http://localhost:9/x.png", 400, "private or local"),
    "on the cloud's own address": ("http://169.254.169.254/latest/meta-data", 400, "not fetched"),
    "in a file": ("file:///etc/passwd", 400, "cannot be read from"),
    "by another protocol": ("gopher://localhost:25/", 400, "cannot be read from"),
}


def refused(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert words in error["message"] and len(error["message"]) > 15 and error["code"], error


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_cannot_be_used(http: httpx.Client, name: str) -> None:
    url, status, words = IMAGES[name]
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "acme", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
    refused(http.post("/v1/chat/completions", json=body), status, words)


def asking(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": fields.pop("text", "hi")}]
    return {"model": "acme", "messages": messages, "max_tokens": 2, **fields}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (asking(model="nobody"), 404, "nobody"),
        (asking(model="acme@99"), 404, "no version 99"),
        (asking(model="acme@candidate"), 404, "no candidate"),
        (asking(model="Acme!"), 404, "no model"),
        (asking(text="word " * 3000), 400, "tokens"),
        (asking(max_tokens=30_000), 400, "max_tokens"),
        (asking(temperature=9), 400, "temperature"),
        (asking(n=0), 400, "n:"),
        (asking(tools=[{"type": "function"}]), 400, "tools"),
        (asking(response_format={"type": "json_schema"}), 400, "json_schema"),
        (
            asking(
                response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}
            ),
            400,
            "cannot be followed",
        ),
        (asking(messages=[]), 400, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_cannot_be_answered(
    http: httpx.Client, body: dict[str, Any], status: int, words: str, stream: bool
) -> None:
    refused(http.post("/v1/chat/completions", json={**body, "stream": stream}), status, words)


def test_a_body_that_is_too_large_or_broken(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    refused(http.post("/v1/chat/completions", content=b"x" * 2_000_001, headers=headers), 413, "2000000")
    refused(http.post("/v1/chat/completions", content=b'{"model": ', headers=headers), 400, "JSON")
    zipped = {**headers, "Content-Encoding": "gzip"}
    refused(
        http.post("/v1/chat/completions", content=zlib.compress(b"{}", wbits=31), headers=zipped), 400, ""
    )


def test_after_all_that_it_answers(http: httpx.Client) -> None:
    assert http.post("/v1/chat/completions", json=asking()).status_code == 200
    assert http.get("/readyz").status_code == 200
