"""ComfyLoop: ComfyUI that learns from the person who uses it.

For programs: `comfyloop.Client` asks a running service, `comfyloop.AsyncClient` is awaited, `comfyloop.records` has
what they answer, `comfyloop.errors` what they raise. Importing the package alone loads none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["Answer", "AsyncClient", "Client", "__version__", "errors", "records"]

if TYPE_CHECKING:
    from comfyloop import errors, records
    from comfyloop.client.client import Answer, AsyncClient, Client
else:  # unseen by type checkers, to which a misspelt name would be of any type

    def __getattr__(name: str) -> Any:
        if name in ("Answer", "AsyncClient", "Client"):
            return getattr(import_module("comfyloop.client.client"), name)
        if name in ("errors", "records"):
            return import_module(f"comfyloop.{name}")
        raise AttributeError(f"module 'comfyloop' has no attribute {name!r}")
