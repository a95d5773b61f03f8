"""ms-swift's own inference service (`swift deploy`), in its environment. It takes adapters at its start alone."""

from __future__ import annotations

from pathlib import Path

from comfyloop.environments import clean_environ
from comfyloop.errors import InvalidInput
from comfyloop.models.adapter_check import Limits
from comfyloop.serve.engines.kinds import _card, _swift_deploy
from comfyloop.serve.engines.kinds._kind import EngineKind, Start, free_port, guarded, new_secret
from comfyloop.serve.engines.kinds._layers import LAYERS
from comfyloop.serve.engines.kinds.vllm import RANKS
from comfyloop.serve.engines.protocol import BASE_NAME, Launch
from comfyloop.settings import Settings

WITH_ADAPTERS = ("transformers", "vllm")
"""ms-swift 4.6 gives the other two no adapters."""


def launch(settings: Settings, start: Start) -> Launch:
    backend = settings.swift_infer_backend
    if start.adapters and backend not in WITH_ADAPTERS:
        raise InvalidInput(
            f"ms-swift serves no adapters with {backend}, and so no version that was learnt.",
            "Set swift_infer_backend to transformers or vllm, or the engine to lmdeploy or sglang itself.",
        )
    port = free_port()
    adapters = [f"{name}={path}" for name, path in start.adapters.items()]
    local = Path(start.model).exists()
    argv = [
        *(start.python, _swift_deploy.__file__),
        *("--model", start.model),
        *("--served_model_name", BASE_NAME),
        *("--infer_backend", backend),
        *(() if settings.dtype == "auto" else ("--torch_dtype", settings.dtype)),
        # of several at a time, transformers' way takes the adapter of one for all
        *(("--max_batch_size", "1") if backend == "transformers" else ()),
        *(_for_vllm(settings, start.model) if backend == "vllm" else ()),
        *(() if local else ("--use_hf", "true")),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--api_key", secret := new_secret()),
        *("--verbose", "false", "--log_interval", "-1"),  # what people ask is in no log
        *(("--adapters", *adapters) if adapters else ()),
        *settings.engine_args,
    ]
    environment = {**clean_environ(), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1" if local else "0"}
    return guarded(argv, port, environment, secret)


def _for_vllm(settings: Settings, model: str) -> tuple[str, ...]:
    share = settings.gpu_memory_utilization or _card.share(model, settings.max_batch)
    return (
        *("--vllm_max_num_seqs", str(settings.max_batch)),
        *("--vllm_max_lora_rank", str(_rank(settings))),
        *(("--vllm_gpu_memory_utilization", str(share)) if share else ()),
    )


def _rank(settings: Settings) -> int:
    return next((rank for rank in RANKS if rank >= settings.max_lora_rank), RANKS[-1])


def limits(settings: Settings) -> Limits:
    if settings.swift_infer_backend == "vllm":
        return Limits(
            engine="ms-swift with vLLM",
            rank=_rank(settings),
            layers=LAYERS,
            hint="Train the language model alone.",
        )
    return Limits(engine="ms-swift", outside=True, patterns=True)  # PEFT, which mixes no DoRA


ENGINE_KIND = EngineKind(
    "swift",
    launch,
    does="ms-swift's inference service (`swift deploy`), over transformers, vLLM, LMDeploy or SGLang "
    "(`swift_infer_backend`)",
    loads=False,
    environment="swift",
    limits=limits,
)
