"""What the engine process is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

DType = Literal["auto", "bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class EngineOptions:
    model: str
    served_model_name: str = "base"
    host: str = "127.0.0.1"
    port: int = 0
    port_file: Path | None = None
    dtype: DType = "auto"
    quant_method: Literal["", "bnb"] = ""  # bnb: the language model's linear layers in NF4
    device: str = "auto"
    threads: int = 0  # 0: all cores
    max_batch: int = 8  # sequences decoded together
    max_queue: int = 64  # sequences that may wait; beyond it 429
    max_context: int = 0  # tokens of prompt and answer together; 0: what the model allows
    max_pixels: int = 1_003_520  # images are scaled down to this, as in training
    max_image_pixels: int = 64_000_000
    rope_scaling: str = ""  # as the adapters were trained, e.g. "yarn:4"
    prefix_mb: int = 256  # memory for keys and values of prompt prefixes seen before
    image_mb: int = 128  # memory for features of images seen before
    packed_mb: int = 1024  # memory for weights laid out a second time, for faster answers on a CPU
    lora_modules: tuple[str, ...] = ()  # NAME=DIRECTORY of adapters that are there from the start
    parent_pid: int = 0  # leave when this process is gone; 0: never
    drain_seconds: float = 5.0  # for running requests, on SIGTERM
    secret: str = field(default="", repr=False)  # the bearer token that callers must send; empty: none
