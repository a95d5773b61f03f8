"""Images as data: URLs."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.errors import InvalidInput
from comfyloop.media import data_urls


@given(st.binary())
def test_what_is_encoded_decodes(data: bytes) -> None:
    assert data_urls.decode(data_urls.encode(data)) == data


def test_a_url_without_base64_is_percent_encoded() -> None:
    assert data_urls.decode("data:image/gif,GIF%2089") == b"GIF 89"


@pytest.mark.parametrize("head", ["DATA:image/PNG;BASE64,", "data:;Base64,", "Data:image/png;name=a;base64,"])
def test_case_does_not_matter(head: str) -> None:
    assert data_urls.is_one(head) and data_urls.decode(head + "R0lG") == b"GIF"


@pytest.mark.parametrize("size", [0, 1, 56, 57, 58, 3000, data_urls.PIECE])
def test_base64_in_lines_and_without_padding_is_read_as_browsers_do(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    written = base64.encodebytes(data[:size]).decode()
    assert data_urls.decode(f"data:image/png;base64,{written}") == data[:size]
    assert data_urls.decode("data:image/png;base64," + written.replace("\n", "\r\n")) == data[:size]
    assert data_urls.decode("data:image/png;base64," + written.replace("\n", "").rstrip("=")) == data[:size]


@pytest.mark.parametrize("body", ["A", "AA=A", "AAAAA", "=", "AAA==A=="])
def test_base64_of_no_bytes_is_said(body: str) -> None:
    with pytest.raises(InvalidInput, match="not valid base64"):
        data_urls.decode(f"data:image/png;base64,{body}")


@pytest.mark.parametrize("url", ["", "data:image/png;base64", "image/png;base64,aaaa", "data:;base64,%%%"])
def test_what_is_broken_is_said(url: str) -> None:
    with pytest.raises(InvalidInput, match="Picture 3 is not"):
        data_urls.decode(url, "Picture 3")
