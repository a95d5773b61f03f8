"""SGLang, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from comfyloop.environments import clean_environ
from comfyloop.models.adapter_check import Limits
from comfyloop.serve.engines.client import Dialect
from comfyloop.serve.engines.kinds import _card
from comfyloop.serve.engines.kinds._kind import EngineKind, Start, free_port, guarded, new_secret
from comfyloop.serve.engines.protocol import BASE_NAME, Launch
from comfyloop.settings import Settings

LAYERS = frozenset(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
"""Those that it is started for: without an adapter at its start it cannot tell which will come."""
DIALECT = Dialect("/load_lora_adapter", "/unload_lora_adapter", "{base}:{name}")


def launch(settings: Settings, start: Start) -> Launch:
    port = free_port()
    adapters = [f"{name}={path}" for name, path in start.adapters.items()]
    share = settings.gpu_memory_utilization or _card.share(start.model, settings.max_batch)
    argv = [
        *(start.python, "-m", "sglang.launch_server"),
        *("--model-path", start.model),
        *("--served-model-name", BASE_NAME),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--dtype", settings.dtype),
        *("--max-running-requests", str(settings.max_batch)),
        "--enable-lora",
        *("--max-loras-per-batch", str(settings.max_loras + 1)),  # the base model counts as one
        *("--max-lora-rank", str(settings.max_lora_rank)),
        *("--lora-target-modules", *sorted(LAYERS)),
        *(("--mem-fraction-static", str(share)) if share else ()),
        *(("--lora-paths", *adapters) if adapters else ()),
        *("--api-key", secret := new_secret()),
        *settings.engine_args,
    ]
    environment = {**clean_environ(), **({"HF_HUB_OFFLINE": "1"} if Path(start.model).exists() else {})}
    return guarded(argv, port, environment, secret)


def limits(settings: Settings) -> Limits:
    return Limits(
        engine="SGLang",
        rank=settings.max_lora_rank,
        layers=LAYERS,
        hint="Train the language model alone.",
    )


ENGINE_KIND = EngineKind(
    "sglang",
    launch,
    does="SGLang: for NVIDIA GPUs, batches many requests",
    environment="sglang",
    limits=limits,
    dialect=DIALECT,
)
