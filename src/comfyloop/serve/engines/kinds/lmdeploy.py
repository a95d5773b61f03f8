"""LMDeploy, in an environment of its own. It takes adapters at its start alone."""

from __future__ import annotations

from comfyloop.environments import clean_environ
from comfyloop.models.adapter_check import Limits
from comfyloop.serve.engines.kinds._kind import EngineKind, Start, free_port, guarded, new_secret
from comfyloop.serve.engines.kinds._layers import LAYERS
from comfyloop.serve.engines.protocol import BASE_NAME, Launch
from comfyloop.settings import Settings


def launch(settings: Settings, start: Start) -> Launch:
    port = free_port()
    adapters = [f"{name}={path}" for name, path in start.adapters.items()]
    argv = [
        *(start.python, "-m", "lmdeploy", "serve", "api_server", start.model),
        *("--backend", "pytorch"),  # TurboMind takes no adapters
        *("--model-name", BASE_NAME),
        *("--server-name", "127.0.0.1"),
        *("--server-port", str(port)),
        *("--dtype", "auto" if settings.dtype == "float32" else settings.dtype),
        *("--max-batch-size", str(settings.max_batch)),
        *(("--adapters", *adapters) if adapters else ()),
        *("--api-keys", secret := new_secret()),
        *settings.engine_args,
    ]
    return guarded(argv, port, clean_environ(), secret)


def limits(settings: Settings) -> Limits:
    return Limits(engine="LMDeploy", layers=LAYERS, hint="Train the language model alone.")


ENGINE_KIND = EngineKind(
    "lmdeploy",
    launch,
    does="LMDeploy: for NVIDIA GPUs",
    loads=False,
    environment="lmdeploy",
    limits=limits,
)
