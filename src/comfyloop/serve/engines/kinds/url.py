"""An engine that somebody else has started: any OpenAI-compatible server."""

from __future__ import annotations

from comfyloop.serve.engines.kinds._kind import EngineKind, Start
from comfyloop.serve.engines.protocol import Launch
from comfyloop.settings import Settings


def launch(settings: Settings, start: Start) -> Launch:
    raise AssertionError("an engine given by URL is not started by us")


ENGINE_KIND = EngineKind("url", launch, does="any OpenAI-compatible server, started by you (`engine_url`)")
