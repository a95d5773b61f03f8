"""Where this machine reaches a service, as URLs have it."""

from __future__ import annotations


def reached(host: str) -> str:
    """A name under which this machine reaches what listens on `host`, as a URL has it."""
    return "localhost" if host in ("", "0.0.0.0", "::") else bracketed(host)


def bracketed(host: str) -> str:
    """A host as a URL has it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
