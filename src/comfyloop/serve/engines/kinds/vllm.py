"""vLLM, in an environment of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from comfyloop.environments import clean_environ
from comfyloop.models.adapter_check import Limits
from comfyloop.serve.engines.kinds import _card
from comfyloop.serve.engines.kinds._kind import EngineKind, Start, free_port, guarded, new_secret
from comfyloop.serve.engines.kinds._layers import LAYERS
from comfyloop.serve.engines.protocol import BASE_NAME, Launch
from comfyloop.settings import Settings

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The highest ranks for which vLLM can be started."""
KV_GIB = "2"


def launch(settings: Settings, start: Start) -> Launch:
    port = free_port()
    on_cpu = shutil.which("nvidia-smi") is None
    # Not unless it is asked for: its routes are among those for development, which any user of this machine may call.
    sleeps = bool(settings.engine_sleep_after) and not on_cpu
    adapters = [f"{name}={path}" for name, path in start.adapters.items()]
    # Started as a module: the `vllm` command of the CPU build asks for the metadata of a package named vllm.
    argv = [
        *(start.python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", start.model),
        *("--served-model-name", BASE_NAME),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--dtype", settings.dtype),
        *("--max-num-seqs", str(settings.max_batch)),
        "--enable-lora",
        *("--max-loras", str(settings.max_loras)),
        *("--max-lora-rank", str(_rank(settings))),
        # Without the head, which it adapts by default: on CPU, scoring an answer of an adapter while another
        # request runs would then end the engine.
        *("--lora-target-modules", *sorted(LAYERS)),
        *(("--enable-tower-connector-lora",) if settings.tower_loras else ()),
        *(("--enforce-eager",) if on_cpu else _share(settings, start.model)),
        *(("--enable-sleep-mode",) if sleeps else ()),
        *(("--lora-modules", *adapters) if adapters else ()),
        *settings.engine_args,
    ]
    environment = {
        **clean_environ(),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_API_KEY": (secret := new_secret()),
    }
    if sleeps:
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    if on_cpu:
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", KV_GIB)
        if settings.engine_swap == "blue_green":
            # It would tie itself to the first cores, and the next one, tied to the same, would hardly start.
            environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if Path(start.model).exists():
        environment["HF_HUB_OFFLINE"] = "1"
    return guarded(argv, port, environment, secret)


def _share(settings: Settings, model: str) -> tuple[str, ...]:
    taken = settings.gpu_memory_utilization or _card.share(model, settings.max_batch)
    return ("--gpu-memory-utilization", str(taken)) if taken else ()


def _rank(settings: Settings) -> int:
    return next((rank for rank in RANKS if rank >= settings.max_lora_rank), RANKS[-1])


def limits(settings: Settings) -> Limits:
    return Limits(
        engine="vLLM",
        rank=_rank(settings),
        layers=LAYERS,
        outside=settings.tower_loras,
        hint="Set tower_loras where vLLM can adapt this model's tower, or train the language model alone.",
    )


ENGINE_KIND = EngineKind(
    "vllm", launch, does="vLLM: batches many requests", environment="vllm", limits=limits
)
