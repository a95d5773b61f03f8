"""Our own engine, a process in this environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from comfyloop.serve.engines.kinds._kind import EngineKind, Start, new_secret
from comfyloop.serve.engines.protocol import BASE_NAME, SECRET_VARIABLE, Launch
from comfyloop.settings import Settings

KEEPS_MIB = 256 + 128
KEEPS_MIB_ON_CPU = 1024
"""What it keeps of prompts and images seen before, and on a processor of weights laid out a second time, as its own
options have them."""


def launch(settings: Settings, start: Start) -> Launch:
    adapters = [f"{name}={path}" for name, path in start.adapters.items()]
    secret = new_secret()
    return Launch(
        [
            *(start.python, "-m", "comfyloop.serve.embedded"),
            *("--model", start.model),
            *("--served-model-name", BASE_NAME),
            *("--host", "127.0.0.1"),
            *("--port", "0"),
            *("--port-file", str(start.port_file)),
            *("--parent-pid", str(os.getpid())),
            *("--dtype", settings.dtype),
            *(("--quant-method", settings.engine_quant_method) if settings.engine_quant_method else ()),
            *("--threads", str(settings.engine_threads)),
            *("--max-batch", str(settings.max_batch)),
            *("--max-queue", str(settings.max_queue)),
            *("--max-pixels", str(settings.max_pixels)),
            *("--max-image-pixels", str(settings.max_image_pixels)),
            *("--rope-scaling", settings.rope_scaling),
            *(("--lora-modules", *adapters) if adapters else ()),
            *settings.engine_args,
        ],
        environment={**os.environ, SECRET_VARIABLE: secret},
        secret=secret,
    )


ENGINE_KIND = EngineKind(
    "embedded", launch, does="our own: transformers and PEFT, with batches and a cache of prompts"
)


def embedded_command(settings: Settings, model: str | Path) -> Callable[[Path], Launch]:
    """How it is started for a model that is there already."""
    return lambda port_file: launch(settings, Start(str(model), port_file, {}))
