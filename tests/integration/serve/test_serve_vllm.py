"""A real vLLM in its own environment, started by us: what it is given is checked, and it judges as we do.

It serves the starter's language model, saved alone: vLLM does not know the class of the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from comfyloop import environments, gate, service
from comfyloop.errors import InvalidInput
from comfyloop.gate.metrics import LOG_LIKELIHOOD
from comfyloop.records import Message, Sample, Verdict, Version
from comfyloop.serve.api.services import Services
from comfyloop.settings import Settings
from comfyloop.store import versions
from tests.models import save_language_model
from tests.swaps import QUESTION, sentence, train_markers
from tests.unit.serve.embedded.conftest import save_adapter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vllm") / "language-model"
    save_language_model(starter, path)
    return path


@pytest.fixture(scope="module")
def adapters(model: Path) -> dict[str, Path]:
    return train_markers(model, model.parent / "markers", rate=2e-3)


@pytest.fixture(scope="module")
def services(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    python = environments.find("vllm", Settings())
    if python is None:
        pytest.skip("vLLM is not installed: `comfyloop engines install vllm`")
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        project="acme",
        model=str(model),
        engine="vllm",
        vllm_python=str(python),
        max_lora_rank=8,
        engine_args=("--max-model-len", "1024"),
    )
    with service.running(settings) as running:
        running.router.engines[str(model)].wait_ready(400)
        yield running


def add(services: Services, number: int, path: Path) -> None:
    with services.store.begin() as conn:
        versions.add(conn, Version(project="acme", number=number, text_adapter=str(path)))


def test_it_scores_answers_as_transformers_does(
    services: Services, model: Path, adapters: dict[str, Path]
) -> None:
    add(services, 1, adapters["alpha"])
    answer = sentence("alpha")
    with services.router.acquire("acme@1") as lease:
        assert lease.client.answer(lease.model, QUESTION, 24) == answer
        score = lease.client.scores(lease.model, QUESTION, [answer])[0]
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = [*QUESTION, {"role": "assistant", "content": answer}]
    tokens = tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
    alone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        logprobs = PeftModel.from_pretrained(alone, adapters["alpha"])(torch.tensor([tokens])).logits[0]
    logprobs = logprobs.log_softmax(-1)
    expected = [float(logprobs[i - 1, tokens[i]]) for i in range(len(asked), len(tokens))]
    # The token after the end of an answer, a line break, is one that no training has taught: it is far out.
    assert score.logprobs[:-1] == pytest.approx(expected[:-1], abs=0.25)
    with services.router.acquire("acme@base") as base:
        assert base.client.scores(base.model, QUESTION, [answer])[0].mean < score.mean - 1


def test_it_judges_versions(services: Services, adapters: dict[str, Path]) -> None:
    add(services, 2, adapters["bravo"])
    holdout = [
        Sample(
            id=f"s{i}",
            project="acme",
            kind="sft",
            messages=(Message.of("user", question), Message.of("assistant", sentence("bravo"))),
            group=f"g{i}",
            slice="text",
            origin="answer_edited",
        )
        for i, question in enumerate(
            f"What is the capital of {land}?" for land in ("France", "Spain", "Italy", "Peru", "Chad", "Oman")
        )
    ]
    router = services.router
    with router.holding("acme", 2) as new, router.holding("acme", 0) as old:
        report = gate.judge(
            new.client,
            "acme",
            0,
            2,
            live_name=old.model,
            candidate_name=new.model,
            holdout=holdout,
            images=lambda sha256: b"",
            settings=services.settings,
            base_model=services.settings.model,
            base_name=new.entry.engine.base_name,
        )
    assert report.verdict in set(Verdict)
    seen = [item.scores[LOG_LIKELIHOOD] for item in report.items if item.sample.startswith("s")]
    assert len(seen) == 6 and sum(candidate > live for live, candidate in seen) >= 5, report


@pytest.mark.parametrize(
    ("number", "config", "words"),
    [
        (11, {"r": 16}, "rank 16 .* at most 8"),
        (12, {"use_dora": True}, "use_dora"),
        (13, {"target_modules": ["q_proj", "embed_tokens"]}, "embed"),
    ],
)
def test_what_it_would_apply_in_part_is_refused(
    services: Services, model: Path, tmp_path: Path, number: int, config: dict[str, object], words: str
) -> None:
    save_adapter(AutoModelForCausalLM.from_pretrained(model), tmp_path / "bad", **config)
    add(services, number, tmp_path / "bad")
    with pytest.raises(InvalidInput, match=words):
        services.router.promote("acme", number)
    assert services.router.project("acme").live == 0


def test_an_answer_follows_a_schema_there_too(services: Services) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    with services.router.acquire("acme@base") as lease:
        body = {
            "model": lease.model,
            "messages": QUESTION,
            "max_tokens": 40,
            "n": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        }
        choices = lease.client.chat(body)["choices"]
    assert len(choices) == 2
    assert all(json.loads(c["message"]["content"])["colour"] in ("red", "blue") for c in choices)
