"""What the trainer learnt is what the embedded engine answers from: the same rows, the trained adapter loaded, every
answer token's log-probability compared, family by family."""

from __future__ import annotations

import base64
import queue
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from comfyloop.formats import Row, Turn
from comfyloop.serve.embedded.engine import EmbeddedEngine
from comfyloop.serve.embedded.jobs import Failed, Finished, JobSampling
from comfyloop.serve.embedded.lora import read_adapter
from comfyloop.serve.embedded.options import EngineOptions
from comfyloop.serve.embedded.protocol import EngineMessage
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.adapters import save_adapter
from comfyloop.train.text.answers import read_answers
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import describe, load
from tests.families import FAMILIES, SEEING, make_family


def engine_log_probs(engine: EmbeddedEngine, messages: list[EngineMessage]) -> list[float]:
    """Of every token of a conversation but the first."""
    prompt = engine.prompts.make(messages, add_generation_prompt=False, continue_final_message=False)
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine.submit("trained", prompt, JobSampling(prompt_logprobs=0, max_tokens=1), events.put)
    while not isinstance(event := events.get(timeout=60), Finished):
        assert not isinstance(event, Failed), event
    assert event.prompt_logprobs is not None
    return [token.logprob for token in event.prompt_logprobs[1:] if token is not None]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_engine_scores_answers_as_the_trainer_does(name: str, tmp_path: Path) -> None:
    model = make_family(name, tmp_path / "model")
    Image.effect_noise((60, 44), 90).convert("RGB").save(tmp_path / "a.png")
    sees = name in SEEING
    turns = (
        Turn("user", "<image>What is this?" if sees else "What is this?"),
        Turn("assistant", "A red mug."),
    )
    row = Row(1, "s", turns, (tmp_path / "a.png",) if sees else ())
    spec = TrainSpec(model=str(model), train="t.jsonl", dtype="float32")
    example = describe(str(model)).encoder(spec).encode(row)
    torch.manual_seed(0)
    loaded = load(spec, describe(str(model)), None)
    for parameter_name, parameter in loaded.trainable:
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.1)
    loaded.eval()
    save_adapter(loaded.peft, tmp_path / "adapter", None)
    trained = read_answers(loaded, ImageFeatures(loaded), [example]).log_probs

    engine = EmbeddedEngine(EngineOptions(model=str(model), dtype="float32", threads=1))
    engine.start()
    try:
        assert engine.ready.wait(60), engine.error
        engine.add_adapter(
            "trained", lambda: read_adapter("trained", tmp_path / "adapter", engine.loaded.model)
        )
        url = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
        image = [{"type": "image_url", "image_url": {"url": url}}] if sees else []
        question = {"role": "user", "content": [*image, {"type": "text", "text": "What is this?"}]}
        messages = [
            EngineMessage.model_validate(question),
            EngineMessage(role="assistant", content="A red mug."),
        ]
        scored = engine_log_probs(engine, messages)
    finally:
        engine.stop()
        engine.join(10)
    served = torch.tensor(scored)[example.answer - 1]
    torch.testing.assert_close(served, trained.detach(), rtol=1e-4, atol=2e-4)
