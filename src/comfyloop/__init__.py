"""ComfyLoop: ComfyUI that learns from the person who uses it.

For programs: `comfyloop.Client` asks a running service, `comfyloop.records` has what it answers, `comfyloop.errors`
what it raises. Importing the package alone loads none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfyloop import errors, records
    from comfyloop.client.client import Client

__version__ = "0.1.0"

__all__ = ["Client", "__version__", "errors", "records"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        return import_module("comfyloop.client.client").Client
    if name in ("errors", "records"):
        return import_module(f"comfyloop.{name}")
    raise AttributeError(f"module 'comfyloop' has no attribute {name!r}")
