"""A real `swift deploy` in its own environment, started by us: what it answers is what transformers and PEFT answer to
the same words.

It serves the starter's language model, saved alone: ms-swift does not know the class of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from comfyloop import environments, service
from comfyloop.errors import Conflict
from comfyloop.records import Version
from comfyloop.serve.api.services import Services
from comfyloop.settings import Settings
from comfyloop.store import versions
from tests.models import save_language_model
from tests.unit.serve.embedded.conftest import save_adapter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def model(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("swift") / "language-model"
    save_language_model(starter, path)
    return path


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    path = model.parent / "adapter"
    save_adapter(AutoModelForCausalLM.from_pretrained(model), path, std=1.0)
    return path


@pytest.fixture(scope="module")
def services(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    python = environments.find("swift", Settings())
    if python is None:
        pytest.skip("NOT PROVED: ms-swift is not installed: `comfyloop engines install swift`")
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        project="acme",
        model=str(model),
        engine="swift",
        swift_python=str(python),
        dtype="float32",
    )
    with service.running(settings) as running:
        running.router.engines[str(model)].wait_ready(800)
        yield running


def expected(model: Path, adapter: Path | None, tokens: int) -> tuple[str, int]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    alone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        alone = PeftModel.from_pretrained(alone, adapter)
    with torch.inference_mode():
        whole = alone.generate(**asked, max_new_tokens=tokens, do_sample=False)
    answer = whole[0, asked["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True), asked["input_ids"].shape[1]


def test_base_and_version_answer_as_transformers_does(services: Services, model: Path, adapter: Path) -> None:
    def asked(name: str) -> tuple[str, int]:
        with services.router.acquire(name) as lease:
            body = {"model": lease.model, "messages": QUESTION, "max_tokens": 12, "temperature": 0.0}
            told = lease.client.chat(body)
        return told["choices"][0]["message"]["content"], told["usage"]["prompt_tokens"]

    assert asked("acme@base") == expected(model, None, 12)
    with services.store.begin() as conn:
        versions.add(conn, Version(project="acme", number=1, text_adapter=str(adapter)))
    services.router.promote("acme", 1)  # blue-green: a second process, with the adapter, takes over
    learnt = expected(model, adapter, 12)
    assert learnt != expected(model, None, 12)
    assert asked("acme") == learnt and asked("acme@base") == expected(model, None, 12)
    with services.router.acquire("acme") as lease, pytest.raises(Conflict, match="serves but cannot judge"):
        lease.client.scores(lease.model, QUESTION, ["Paris."])
