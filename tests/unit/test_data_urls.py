"""Images as data: URLs."""

from __future__ import annotations

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


@pytest.mark.parametrize("url", ["", "data:image/png;base64", "image/png;base64,aaaa", "data:;base64,%%%"])
def test_what_is_broken_is_said(url: str) -> None:
    with pytest.raises(InvalidInput, match="Picture 3 is not"):
        data_urls.decode(url, "Picture 3")
