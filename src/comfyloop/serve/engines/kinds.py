"""The engines that serve a base model: how each is started, and what it takes of adapters.

| kind | a process in | adapters |
|---|---|---|
| `embedded` | this environment | loaded and unloaded while it runs |
| `vllm` | `comfyloop engines install vllm` | loaded and unloaded while it runs |
| `lmdeploy` | `comfyloop engines install lmdeploy` | given at its start: swapped blue-green |
| `url` | whoever started it | loaded while it runs, where it has vLLM's routes |

With the setting `engine_swap` the first two are swapped blue-green as well.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from comfyloop.environments import clean_environ
from comfyloop.serve.engines import guard
from comfyloop.serve.engines.adapter_check import Limits
from comfyloop.serve.engines.protocol import BASE_NAME, SECRET_VARIABLE, Launch
from comfyloop.settings import Settings


@dataclass(frozen=True)
class Start:
    """What a process is started with: a directory or hub id, and adapters (name -> directory)."""

    model: str
    port_file: Path
    adapters: Mapping[str, str]
    python: str = sys.executable


@dataclass(frozen=True)
class EngineKind:
    """
    Attributes:
        environment: Its name in `environments.ENVIRONMENTS`; empty: it runs in ours.
        loads: Whether adapters can be loaded while it runs.
        limits: What it takes of adapters; None: it says so itself when one is loaded.
    """

    name: str
    launch: Callable[[Settings, Start], Launch]
    loads: bool
    environment: str = ""
    limits: Callable[[Settings], Limits] | None = None


def _embedded(settings: Settings, start: Start) -> Launch:
    adapters = [f"{name}={path}" for name, path in start.adapters.items()]
    secret = _secret()
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


def _secret() -> str:
    return secrets.token_urlsafe(32)


VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The highest ranks for which vLLM can be started."""
VLLM_KV_GIB = "2"
VLLM_LAYERS = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "wqkv", "wo"),
        *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "w1", "w2", "w3"),
        *("c_attn", "c_proj", "c_fc", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    )
)


def _vllm(settings: Settings, start: Start) -> Launch:
    port = _free_port()
    on_cpu = shutil.which("nvidia-smi") is None
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
        *("--max-lora-rank", str(_vllm_rank(settings))),
        # Without the head, which it adapts by default: on CPU, scoring an answer of an adapter while another
        # request runs would then end the engine.
        *("--lora-target-modules", *sorted(VLLM_LAYERS)),
        *(("--enable-tower-connector-lora",) if settings.tower_loras else ()),
        *(("--enforce-eager",) if on_cpu else ()),
        *(("--lora-modules", *adapters) if adapters else ()),
        *settings.engine_args,
    ]
    environment = {
        **clean_environ(),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_API_KEY": (secret := _secret()),
    }
    if on_cpu:
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", VLLM_KV_GIB)
        if settings.engine_swap == "blue_green":
            # It would tie itself to the first cores, and the next one, tied to the same, would hardly start.
            environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if Path(start.model).exists():
        environment["HF_HUB_OFFLINE"] = "1"
    return _guarded(argv, port, environment, secret)


def _vllm_rank(settings: Settings) -> int:
    return next((rank for rank in VLLM_RANKS if rank >= settings.max_lora_rank), VLLM_RANKS[-1])


def _vllm_limits(settings: Settings) -> Limits:
    return Limits(
        engine="vLLM",
        rank=_vllm_rank(settings),
        layers=VLLM_LAYERS,
        outside=settings.tower_loras,
        hint="Set tower_loras where vLLM can adapt this model's tower, or train the language model alone.",
    )


def _lmdeploy(settings: Settings, start: Start) -> Launch:
    port = _free_port()
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
        *("--api-keys", secret := _secret()),
        *settings.engine_args,
    ]
    return _guarded(argv, port, clean_environ(), secret)


def _lmdeploy_limits(settings: Settings) -> Limits:
    return Limits(engine="LMDeploy", layers=VLLM_LAYERS, hint="Train the language model alone.")


def _elsewhere(settings: Settings, start: Start) -> Launch:
    raise AssertionError("an engine given by URL is not started by us")


def _guarded(argv: list[str], port: int, environment: Mapping[str, str], secret: str) -> Launch:
    """The program under a process of ours, which ends it when this one is gone."""
    return Launch([sys.executable, guard.__file__, str(os.getpid()), *argv], port, environment, secret)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


KINDS = {
    kind.name: kind
    for kind in (
        EngineKind("embedded", _embedded, loads=True),
        EngineKind("vllm", _vllm, loads=True, environment="vllm", limits=_vllm_limits),
        EngineKind("lmdeploy", _lmdeploy, loads=False, environment="lmdeploy", limits=_lmdeploy_limits),
        EngineKind("url", _elsewhere, loads=True),
    )
}


def embedded_command(settings: Settings, model: str | Path) -> Callable[[Path], Launch]:
    """How the embedded engine is started for a model that is there already."""
    return lambda port_file: _embedded(settings, Start(str(model), port_file, {}))
