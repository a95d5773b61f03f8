"""The engines that serve a base model: how each is started, and what it takes of adapters. One file a kind, each
declaring its `ENGINE_KIND`.

With the setting `engine_swap` those that load adapters while they run are swapped blue-green as well.
"""

from __future__ import annotations

from comfyloop.declared import declared
from comfyloop.serve.engines.kinds._kind import EngineKind, Start

KINDS: dict[str, EngineKind] = declared(__name__, EngineKind)

__all__ = ["KINDS", "EngineKind", "Start"]
