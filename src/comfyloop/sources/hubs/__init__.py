"""Hubs of data sets, by their own clients, one module a hub. Each declares its `Hub` under the letters before an id."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from comfyloop.sources.hubs import hugging_face, modelscope
from comfyloop.sources.hubs.hub import Hub, HubFile, HubListing

HUBS: Mapping[str, Callable[[], Hub]] = {"hf": hugging_face.HuggingFace, "ms": modelscope.ModelScope}

__all__ = ["HUBS", "Hub", "HubFile", "HubListing"]
