"""An engine of a tiny model inside the test process, and adapters that PEFT itself has saved."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyloop.serve.embedded.engine import EmbeddedEngine
from comfyloop.serve.embedded.jobs import Failed, Finished, Job, JobSampling, TextPiece
from comfyloop.serve.embedded.lora import read_adapter
from comfyloop.serve.embedded.options import EngineOptions
from comfyloop.serve.embedded.protocol import EngineMessage


@dataclass
class Asked:
    """A request under way; `result` waits for its end."""

    job: Job
    events: queue.SimpleQueue[Any]
    pieces: list[TextPiece] = field(default_factory=list)

    def result(self) -> tuple[list[int], str, Finished]:
        while True:
            event = self.events.get(timeout=60)
            if isinstance(event, TextPiece):
                self.pieces.append(event)
            elif isinstance(event, Failed):
                raise event.error
            else:
                assert self.job.sequence is not None
                return self.job.sequence.answer, "".join(p.text for p in self.pieces), event


class Client:
    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine = engine

    def send(self, messages: str | list[EngineMessage], model: str = "base", **sampling: Any) -> Asked:
        if isinstance(messages, str):
            messages = [EngineMessage(role="user", content=messages)]
        prompt = self.engine.prompts.make(messages, add_generation_prompt=True, continue_final_message=False)
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        sampling.setdefault("max_tokens", 24)
        return Asked(self.engine.submit(model, prompt, JobSampling(**sampling), events.put), events)

    def ask(self, messages: str | list[EngineMessage], model: str = "base", **sampling: Any) -> str:
        return self.send(messages, model, **sampling).result()[1]

    def tokens(self, messages: str | list[EngineMessage], model: str = "base", **sampling: Any) -> list[int]:
        return self.send(messages, model, **sampling).result()[0]

    def load(self, name: str, path: Path) -> None:
        self.engine.add_adapter(name, lambda: read_adapter(name, path, self.engine.loaded.model))


@pytest.fixture(scope="session")
def start_engine() -> Iterator[Callable[..., Client]]:
    engines: list[EmbeddedEngine] = []

    def start(model: Path, **options: Any) -> Client:
        options.setdefault("dtype", "float32")
        engine = EmbeddedEngine(EngineOptions(model=str(model), threads=1, **options))
        engine.start()
        engines.append(engine)
        assert engine.ready.wait(60), engine.error
        return Client(engine)

    yield start
    for engine in engines:
        engine.stop()
    for engine in engines:
        engine.join(10)


@pytest.fixture(scope="session")
def text_engine(start_engine: Callable[..., Client], tiny_llm: Path) -> Client:
    return start_engine(tiny_llm)


@pytest.fixture(scope="session")
def vision_engine(start_engine: Callable[..., Client], tiny_vlm: Path) -> Client:
    return start_engine(tiny_vlm)


def save_adapter(model: Any, path: Path, seed: int = 1, std: float = 0.3, **config: Any) -> Any:
    """A LoRA with random weights, saved by PEFT; returns the PEFT model."""
    from peft import LoraConfig, get_peft_model

    config.setdefault("r", 4)
    config.setdefault("lora_alpha", 8)
    config.setdefault("target_modules", ["q_proj", "k_proj", "v_proj", "o_proj"])
    peft = get_peft_model(model, LoraConfig(**config))
    torch.manual_seed(seed)
    for name, tensor in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=std)
        if "lora_magnitude" in name:
            tensor.data *= torch.empty_like(tensor).uniform_(0.7, 1.3)
    peft.save_pretrained(path)
    return peft.eval()


@pytest.fixture(scope="session")
def adapters(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from transformers import AutoModelForCausalLM

    paths = [tmp_path_factory.mktemp("adapters") / str(n) for n in range(3)]
    for seed, path in enumerate(paths):
        save_adapter(AutoModelForCausalLM.from_pretrained(tiny_llm), path, seed=seed)
    return paths
