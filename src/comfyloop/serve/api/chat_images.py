"""Images of a chat request: from a data URL, an upload or an allowed host, into the blob store."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import httpx

from comfyloop.capture import images
from comfyloop.errors import InvalidInput, NotFound, TooLarge
from comfyloop.media import data_urls
from comfyloop.settings import Settings
from comfyloop.store import Store

UPLOAD = "comfyloop://"
"""`comfyloop://<sha256>` names an image of POST /v1/images."""
FETCH_SECONDS = 10.0
NAT64 = ipaddress.ip_network("64:ff9b::/32")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def take(url: str, store: Store, settings: Settings) -> tuple[str, str]:
    """The SHA-256 of the image at `url`, now in the blob store, and a data URL of it for the engine.

    Blocks (disk, network, decoding). Raises InvalidInput, TooLarge or NotFound with a sentence.
    """
    if url.startswith(UPLOAD):
        sha256 = url.removeprefix(UPLOAD)
        if not store.blobs.exists(sha256):
            raise NotFound(
                f"There is no uploaded image {sha256[:80]!r}.",
                "Upload it with POST /v1/images and use its sha256.",
            )
        data = store.blobs.get(sha256)
        return sha256, data_urls.encode(data)
    if data_urls.is_one(url):
        data = data_urls.decode(url)
    elif url.startswith(("http://", "https://")):
        data = fetch(url, settings)
    else:
        raise InvalidInput(
            f"An image cannot be read from {url[:40]!r}.",
            "Send a data URL, comfyloop://<sha256> of an upload, or an http(s) URL.",
        )
    info = images.store_image(store, data, settings)
    return info.sha256, data_urls.encode(data)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the open internet: not this machine, its network or a reserved range."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return is_public(mapped)
    if isinstance(address, ipaddress.IPv6Address) and (
        address.sixtofour or address.teredo or address in NAT64
    ):
        return False  # they carry an IPv4 address within, which may be a private one
    return address.is_global and not address.is_multicast


def resolve(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def fetch(
    url: str,
    settings: Settings,
    *,
    addresses: Callable[[str, int], Sequence[str]] = resolve,
    allowed: Callable[[Address], bool] = is_public,
) -> bytes:
    """Download an image, from hosts that the operator allows only, and never from a private address.

    Every address of the name is checked, and the connection goes to the one that was checked, so a name that
    changes its address in between gains nothing. Redirects are not followed.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
    except ValueError as error:
        raise InvalidInput(f"An image URL cannot be read ({error}).") from error
    if host not in settings.allowed_image_hosts:
        raise InvalidInput(
            f"Images are not fetched from {host[:100]!r}.",
            "Send the image itself (a data URL or POST /v1/images), or have the operator add the host to "
            "the setting allowed_image_hosts.",
        )
    if parts.username or parts.password:
        raise InvalidInput("An image URL may not carry a user name or password.")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = addresses(host, port)
    except (OSError, ValueError, UnicodeError) as error:
        raise InvalidInput(f"The host {host!r} of an image cannot be resolved ({error}).") from error
    if not found or not all(allowed(ipaddress.ip_address(a.partition("%")[0])) for a in found):
        raise InvalidInput(
            f"The host {host!r} of an image has a private or local address, from which nothing is fetched.",
            "Send the image itself.",
        )
    address = f"[{found[0]}]" if ":" in found[0] else found[0]
    target = httpx.URL(url).copy_with(host=address, port=port)
    try:
        with (
            httpx.Client(timeout=FETCH_SECONDS, trust_env=False, verify=ssl.create_default_context()) as http,
            http.stream(
                "GET",
                target,
                headers={"Host": parts.netloc, "Accept": "image/*"},
                extensions={"sni_hostname": host},
            ) as response,
        ):
            if response.status_code != 200:
                raise InvalidInput(
                    f"The host {host!r} answered with status {response.status_code} instead of an image.",
                    "Redirects are not followed: send the final URL or the image itself.",
                )
            data = bytearray()
            for piece in response.iter_bytes():
                data += piece
                if len(data) > settings.max_image_bytes:
                    raise TooLarge(f"The image at {host!r} is larger than {settings.max_image_bytes} bytes.")
            return bytes(data)
    except httpx.HTTPError as error:
        raise InvalidInput(f"The image at {host!r} cannot be fetched ({type(error).__name__}).") from error
