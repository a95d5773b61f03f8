"""Versions change under load, with the real engine: nobody fails, nobody is told a wrong version."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from comfyloop.serve.engines.kinds.embedded import embedded_command
from comfyloop.settings import Settings
from tests.unit.serve.embedded.conftest import save_adapter
from tests.unit.serve.gateway import Gateway, running_gateway

SWAPS = 30  # a hundred, by a whole service: tests/acceptance/test_swap.py
CLIENTS = 8
QUESTION = [{"role": "user", "content": "What would you do on holiday?"}]


@pytest.fixture(scope="module")
def gateway(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The embedded engine on a tiny model, and two versions whose adapters PEFT has saved."""
    home = tmp_path_factory.mktemp("swap")
    settings = Settings(home=home, project="acme", port=0, dtype="float32", engine_threads=1)
    with running_gateway(settings, embedded_command(settings, tiny_llm), wait=False) as running:
        for number in (1, 2):
            path = home / f"adapter-{number}"
            save_adapter(AutoModelForCausalLM.from_pretrained(tiny_llm), path, seed=number, std=1.0)
            running.add_version(number, path)
        running.engine.wait_ready(120)
        yield running


def test_versions_are_swapped_under_load_without_a_wrong_word(gateway: Gateway) -> None:
    router = gateway.services.router

    def answer(model: str) -> str:
        body = {"model": model, "messages": QUESTION, "max_tokens": 12}
        response = gateway.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    expected = {name: answer(name) for name in ("acme@base", "acme@1", "acme@2")}
    assert len(set(expected.values())) == 3, "the adapters must be told apart by what they say"

    stop = threading.Event()
    failures: list[str] = []
    heard: list[tuple[str, str]] = []
    gaps: list[float] = []

    def ask_without_pause() -> None:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=30)
        while not stop.is_set():
            said, names, last = "", set(), time.monotonic()
            try:
                for chunk in client.chat.completions.create(
                    model="acme", messages=QUESTION, max_tokens=12, stream=True
                ):
                    said += chunk.choices[0].delta.content or ""
                    names.add(chunk.system_fingerprint)
                    gaps.append(time.monotonic() - last)
                    last = time.monotonic()
                (name,) = names
                heard.append((str(name), said))
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")

    clients = [threading.Thread(target=ask_without_pause) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        seconds = []
        for swap in range(SWAPS):
            started = time.monotonic()
            if swap % 4 == 3:
                router.rollback("acme")
            else:
                router.promote("acme", swap % 3)
            live = router.project("acme").live
            assert ("acme", live) in {(name, number) for name, number, _ in router.loaded()}
            seconds.append(time.monotonic() - started)
    finally:
        stop.set()
        for client in clients:
            client.join()

    assert failures == []
    assert len(heard) > SWAPS
    assert {name for name, _ in heard} == set(expected)
    wrong = [(name, said) for name, said in heard if said != expected[name]]
    assert wrong == []
    assert max(gaps) < 5.0 and sorted(seconds)[len(seconds) // 2] < 2.0


def test_a_roll_back_gives_bit_identical_answers(gateway: Gateway) -> None:
    router = gateway.services.router
    router.promote("acme", 1)
    body = {"model": "acme", "messages": QUESTION, "max_tokens": 16, "logprobs": True, "top_logprobs": 3}

    def look() -> object:
        choice = gateway.http.post("/v1/chat/completions", json=body).json()["choices"][0]
        return choice["message"]["content"], choice["logprobs"]["content"]

    before = look()
    router.promote("acme", 2)
    assert look() != before
    router.rollback("acme")
    assert look() == before


def test_an_answers_score_is_that_of_transformers_and_peft(gateway: Gateway, tiny_llm: Path) -> None:
    answer = "Lie in the sun and learn to surf."
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    whole = [*QUESTION, {"role": "assistant", "content": answer}]
    asked = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)["input_ids"]
    tokens = tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
    assert tokens[: len(asked)] == asked
    model = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, gateway.services.settings.home / "adapter-2")
    with torch.inference_mode():
        logprobs = adapted(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = [float(logprobs[i - 1, tokens[i]]) for i in range(len(asked), len(tokens))]
    with gateway.services.router.holding("acme", 2) as lease:
        score = lease.client.scores(lease.model, QUESTION, [answer])[0]
    assert score.logprobs == pytest.approx(expected, abs=1e-3)
    assert score.mean == pytest.approx(sum(expected) / len(expected), abs=1e-3)


def test_an_adapter_of_another_shape_is_refused_and_the_old_version_stays(
    gateway: Gateway, tiny_llm: Path, tmp_path: Path
) -> None:
    save_adapter(AutoModelForCausalLM.from_pretrained(tiny_llm), tmp_path / "bad", seed=3)
    config = tmp_path / "bad" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 16'))
    gateway.add_version(9, tmp_path / "bad")
    gateway.services.router.promote("acme", 1)
    response = gateway.http.post("/v1/versions/9/promote")
    assert response.status_code == 400 and len(response.json()["error"]["message"]) > 20
    assert gateway.ask("acme", max_tokens=1).headers["x-comfyloop-version"] == "acme@1"
