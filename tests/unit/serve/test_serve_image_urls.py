"""Images by URL: only from allowed hosts, never from private addresses."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.errors import InvalidInput, TooLarge
from comfyloop.serve.api.chat_images import fetch, is_public
from comfyloop.settings import Settings

PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b:1::1", "64:ff9b::7f00:1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(network="93.184.216.0/24"))
def test_addresses_of_the_internet_are_public(address: ipaddress.IPv4Address) -> None:
    assert is_public(address)
    assert is_public(ipaddress.ip_address(f"::ffff:{address}"))


class _Host(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1/secret")
            self.end_headers()
            return
        data = b"x" * (2000 if self.path == "/large" else 10)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data + self.headers["Host"].encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Host)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def allowing(settings: Settings) -> Settings:
    return settings.model_copy(update={"allowed_image_hosts": ("images.test",), "max_image_bytes": 1000})


def _here(name: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def test_an_allowed_host_is_fetched_from_the_address_that_was_checked(allowing: Settings, host: int) -> None:
    url = f"http://images.test:{host}/cat.png"
    data = fetch(url, allowing, addresses=_here, allowed=lambda address: True)
    assert data == b"x" * 10 + f"images.test:{host}".encode()


def test_a_redirect_is_not_followed_and_size_is_limited(allowing: Settings, host: int) -> None:
    with pytest.raises(InvalidInput, match="302"):
        fetch(f"http://images.test:{host}/moved", allowing, addresses=_here, allowed=lambda address: True)
    with pytest.raises(TooLarge):
        fetch(f"http://images.test:{host}/large", allowing, addresses=_here, allowed=lambda address: True)


def test_a_host_with_one_private_address_is_refused(allowing: Settings, host: int) -> None:
    def both(name: str, port: int) -> list[str]:
        return ["93.184.216.34", "127.0.0.1"]

    with pytest.raises(InvalidInput, match="private"):
        fetch(f"http://images.test:{host}/cat.png", allowing, addresses=both)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://other.test/cat.png", "not fetched"),
        ("http://images.test.evil.test/cat.png", "not fetched"),
        ("http://images.test@evil.test/cat.png", "not fetched"),
        ("http://kim:secret@images.test/cat.png", "user name"),
        ("http://images.test:99999/cat.png", "resolved"),
        ("http:///cat.png", "not fetched"),
        ("http://[::1/cat.png", "cannot be read"),
    ],
)
def test_urls_of_other_hosts_are_refused(allowing: Settings, url: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        fetch(url, allowing, addresses=_here, allowed=lambda address: True)
