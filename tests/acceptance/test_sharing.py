"""Two services: what one has learned is used, judged and trained on by the other, and comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.client.client import Client
from comfyloop.records import AnswerEdited
from tests.acceptance.conftest import RunningService, wait_for
from tests.hub_server import hub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
pytest.importorskip("cryptography", reason="bundles are signed with it: pip install 'comfyloop[hubs]'")

THINGS = ("mug", "lamp", "shirt", "chair", "knife", "tent", "boat", "spoon")


def correct(client: Client, asked: str, wanted: str) -> None:
    answers = {thing: client.ask(asked.format(thing), max_tokens=8) for thing in THINGS}
    client.send_feedback(
        [
            AnswerEdited(
                id=f"{asked.split()[0].lower()}-{thing}",
                project="acme",
                generation=found.generation,
                edited=wanted,
            )
            for thing, found in answers.items()
        ]
    )


def run(service: RunningService, *words: str) -> Any:
    done = CliRunner().invoke(app, [*words, "--url", service.client.url, "-p", "acme", "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.stdout)


def test_what_one_has_learned_another_uses_trains_on_and_gives_back(
    tiny_llm: Path,
    make_service: Callable[..., RunningService],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("COMFYLOOP_CACHE_DIR", str(tmp_path / "cache"))
    common = {
        "project": "acme", "model": tiny_llm, "trigger_samples": 1000, "holdout_every": 2, "replay_share": 0,
        "learning_rate": 1e-2, "epochs": 4, "gate_forgetting": 1000, "quiet_seconds": 0, "auto_promote": False,
        "engine_threads": 1, "gate_min_items": 3, "examples": "off", "warm_trainer": False,
        "cache_dir": tmp_path / "cache",
    }  # fmt: skip
    anna, bela = (make_service(publisher=name, **common) for name in ("Anna", "Bela"))
    with hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        for service in (anna, bela):
            service.start()
        for service in (anna, bela):
            service.wait_ready()
        correct(anna.client, "Write a caption for a {}.", "a red cap on the old bench")
        learn(anna, 1)
        run(anna, "push", "acme@1", "hf:anna/acme")

        correct(bela.client, "What is a {}?", "a thing from the blue box")
        taken = run(bela, "pull", "hf:anna/acme")
        assert taken["gate"]["candidate"] == 1 and taken["gate"]["measures"], "it was judged on Bela's items"
        assert taken["promoted"] is None
        bela.client.promote(1, force=True)
        for thing in THINGS:
            question = f"Write a caption for a {thing}."
            assert (
                bela.client.ask(question, max_tokens=16).text
                == anna.client.ask(question, max_tokens=16, model="acme@1").text
            )

        learn(bela, 2)
        run(bela, "push", "2", "hf:bela/acme")
        back = run(anna, "pull", "hf:bela/acme")
    origin = back["version"]["origin"]
    _, (imported, first) = anna.client.versions()
    assert imported.number == 2 and origin["publisher"] == "Bela"
    assert [one["version"] for one in origin["lineage"]] == [first.sha256]
    assert [one["publisher"] for one in origin["lineage"]] == ["Anna"]


def learn(service: RunningService, number: int) -> None:
    service.client.start_turn()
    wait_for(lambda: service.client.loop().outcome, 900, service.what_happened)
    loop = service.client.loop()
    assert loop.version == number, (loop.outcome, loop.reason, loop.error)
