"""`kill -9` at every transition: no feedback lost, no half-promoted version, the loop ends after the restart."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from comfyloop.errors import ComfyLoopError
from comfyloop.records import AnswerEdited, LoopState, RunState, VersionState
from tests.acceptance.conftest import RunningService, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

QUESTIONS = [
    f"Write a caption for a {thing}." for thing in ("mug", "lamp", "shirt", "chair", "knife", "tent")
] + [f"What would the {animal} do in Hawaii?" for animal in ("cat", "dog", "owl", "fox", "hen", "cow")]


def _settings(model: Path) -> dict[str, object]:
    """A tiny random model learns one sentence by heart; forgetting general answers is no matter of it."""
    return {
        "project": "acme",
        "model": model,
        "trigger_samples": len(QUESTIONS),
        "holdout_every": 2,
        "replay_share": 0,
        "learning_rate": 1e-2,
        "epochs": 30,
        "gate_forgetting": 1000,
        "lease_seconds": 10,
    }


def _correct_everything(service: RunningService) -> list[str]:
    answers = [service.client.ask(question, max_tokens=12) for question in QUESTIONS]
    edits = [
        AnswerEdited(
            id=f"edit-{i}", project="acme", generation=a.generation, edited="a red cap on the old bench"
        )
        for i, a in enumerate(answers)
    ]
    return service.client.send_feedback(edits)["stored"]


def _loop_row(service: RunningService) -> tuple[str, str]:
    """State and outcome straight from the database: faster than HTTP, and there when no service is."""
    with sqlite3.connect(f"file:{service.home}/comfyloop.db?mode=ro", uri=True, timeout=10) as db:
        row = db.execute("SELECT state, outcome FROM loops WHERE project = 'acme'").fetchone()
    return row if row is not None else ("idle", "")


def _wait_for_state(service: RunningService, state: LoopState, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while _loop_row(service)[0] != state.value:
        if _loop_row(service)[1]:
            pytest.fail(f"the turn ended ({_loop_row(service)[1]}) before {state}\n{service.what_happened()}")
        if time.monotonic() > deadline:
            pytest.fail(f"never {state}\n{service.what_happened()}")
        time.sleep(0.001)


def _assert_whole(service: RunningService, sent: list[str]) -> None:
    """What must be true after any kill, once the loop has come to rest."""
    wait_for(lambda: _loop_row(service) == ("idle", "promoted"), 240, service.what_happened)
    service.wait_ready()
    client = service.client
    assert [item["id"] for item in client.pages("/v1/feedback")] == sent
    live, versions = client.versions()
    assert live == 1
    assert [version.state for version in versions] == [VersionState.LIVE]
    assert client.ask(QUESTIONS[0], max_tokens=4).version == "acme@1"
    runs = list(client.pages("/v1/runs"))
    assert [run["state"] for run in runs] == [RunState.SUCCEEDED]
    assert service.trainers() == []


def test_the_service_is_killed_in_every_state(
    tiny_llm: Path, make_service: Callable[..., RunningService]
) -> None:
    service = make_service(**_settings(tiny_llm))
    service.start()
    service.wait_ready()
    sent = _correct_everything(service)
    for state in (LoopState.CURATING, LoopState.TRAINING, LoopState.GATING, LoopState.PROMOTING):
        _wait_for_state(service, state)
        service.kill()
        assert _loop_row(service)[0] in {state.value, "training", "gating", "promoting", "idle"}
        if _loop_row(service) == ("idle", "promoted"):  # it was quicker than the kill
            service.start()
            break
        service.start()
    _assert_whole(service, sent)


def test_the_trainer_and_the_engine_are_killed(
    tiny_llm: Path, make_service: Callable[..., RunningService]
) -> None:
    service = make_service(**_settings(tiny_llm))
    service.start()
    service.wait_ready()
    sent = _correct_everything(service)
    _wait_for_state(service, LoopState.TRAINING)
    wait_for(lambda: _step(service) >= 12, 60, service.what_happened)
    for trainer in service.trainers():
        trainer.kill()
    _kill_engine(service)
    with pytest.raises(ComfyLoopError):  # one sentence, not a broken connection
        for _ in range(50):
            service.client.ask(QUESTIONS[0], max_tokens=4)
    _wait_for_state(service, LoopState.GATING, 120)
    _kill_engine(service)
    _assert_whole(service, sent)


def _step(service: RunningService) -> int:
    run = service.client.loop().run
    status = service.client.call("GET", f"/v1/runs/{run}")["status"] if run else None
    return int(status["step"]) if status else 0


def _kill_engine(service: RunningService) -> None:
    for engine in service.children("comfyloop.serve.embedded"):
        engine.kill()
