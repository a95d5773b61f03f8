"""The loop with the preference recipes: ratings through kto, edits through dpo, judged by what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from comfyloop.records import AnswerEdited, AnswerRated, Feedback
from comfyloop.train.run.directory import RunDirectory
from tests.acceptance.conftest import RunningService, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

THINGS = (
    "pillow", "lamp", "kettle", "scarf", "mug", "candle", "bowl", "towel", "basket", "vase", "clock", "chair",
    "table", "rug", "mirror", "blanket",
)  # fmt: skip


@pytest.mark.parametrize("recipe", ["kto", "dpo"])
def test_what_a_person_prefers_is_learnt_and_judged(
    recipe: str, tiny_llm: Path, make_service: Callable[..., RunningService], tmp_path: Path
) -> None:
    service = make_service(
        project="acme", model=tiny_llm, recipe=recipe, trigger_samples=len(THINGS), holdout_every=2,
        cache_dir=tmp_path / "cache", quiet_seconds=0, warm_trainer=False, learning_rate=0.005,
        gate_forgetting=100, dtype="float32", train_threads=1, engine_threads=1, replay_share=0,
        epochs=30 if recipe == "dpo" else 6,  # answers must come closer, not only become likelier
    )  # fmt: skip
    service.start()
    service.wait_ready()
    said: list[Feedback] = []
    for i, thing in enumerate(THINGS):
        good = i % 4 < 2
        question = f"Write a caption for a {thing}." if good else f"What would the cat do with a {thing}?"
        answer = service.client.ask(question, max_tokens=12)
        if recipe == "kto":
            said.append(
                AnswerRated(id=f"f{i}", project="acme", generation=answer.generation, rating=5 if good else 1)
            )
        else:
            said.append(
                AnswerEdited(
                    id=f"f{i}", project="acme", generation=answer.generation, edited=f"Meet the {thing}: red."
                )
            )
    service.client.send_feedback(said)
    wait_for(lambda: service.client.loop().outcome, 1200, service.what_happened)
    loop = service.client.loop()
    assert loop.outcome == "promoted", (loop, service.what_happened())
    lines = list(RunDirectory(service.home / "runs" / loop.run).log_lines())
    assert lines[-1]["loss"] < lines[1]["loss"]
    assert lines[-1]["holdout_rewards/margins"] > 0
    assert ("kl" in lines[-1]) == (recipe == "kto")
