"""Versions that say their own marker, and clients that listen without pause while they are swapped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

MARKERS = ("alpha", "bravo", "delta", "hotel")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def sentence(marker: str) -> str:
    return f"It says {marker} {marker} {marker}."


def train_markers(model_dir: Path, folder: Path, steps: int = 40, rate: float = 5e-3) -> dict[str, Path]:
    """A LoRA for each marker, trained with PEFT until the model answers `QUESTION` with its sentence."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    paths = {}
    for marker in MARKERS:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
        peft = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
        answer = tokenizer(f"{sentence(marker)}<|im_end|>", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        optimiser = torch.optim.AdamW((p for p in peft.parameters() if p.requires_grad), lr=rate)
        for _ in range(steps):
            loss = peft(input_ids=ids, labels=labels).loss
            if float(loss.detach()) < 0.01:  # before the step: the next one may overshoot
                break
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        else:
            raise AssertionError(f"{marker} was not learnt: loss {float(loss.detach()):.3f}")
        paths[marker] = folder / marker
        peft.save_pretrained(paths[marker])
    return paths


@dataclass
class Heard:
    """What the clients heard: (version, its text), what failed, and seconds between tokens."""

    answers: list[tuple[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def wrong(self, expected: dict[str, str]) -> list[tuple[str, str]]:
        return [(name, text) for name, text in self.answers if text != expected[name]]


@contextmanager
def listening(url: str, clients: int, max_tokens: int = 24, model: str = "acme") -> Iterator[Heard]:
    """So many clients stream answers of `model` one after another until the block ends."""
    heard, stop = Heard(), threading.Event()

    def listen() -> None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        while not stop.is_set():
            text, names, last = "", set(), 0.0
            body: dict[str, Any] = {
                "model": model,
                "messages": QUESTION,
                "max_tokens": max_tokens,
                "temperature": 0.0,
            }
            try:
                for chunk in client.chat.completions.create(**body, stream=True):
                    text += chunk.choices[0].delta.content or ""
                    names.add(chunk.system_fingerprint)
                    now = time.monotonic()
                    if last:
                        heard.gaps.append(now - last)
                    last = now
                (name,) = names
                heard.answers.append((str(name), text))
            except Exception as error:
                heard.failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=listen) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
