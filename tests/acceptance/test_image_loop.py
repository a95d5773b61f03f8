"""Picks of pictures train both sides of a version, which are judged and promoted as a pair; killed while judged."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from comfyloop.client.client import Client
from comfyloop.gate import render_text
from comfyloop.records import ImagePicked, VersionState
from tests.acceptance.conftest import RunningService, wait_for
from tests.integration.train.test_image_runs import shape

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

THINGS = ("mug", "lamp", "rug", "bowl", "sofa", "vase", "clock", "plate", "towel", "desk", "kite", "boat")
WORDS = "a red cap on the old bench"


def upload(client: Client, picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return client.upload_image(out.getvalue())


def test_a_pair_is_trained_judged_and_promoted_whole(
    tiny_llm: Path, tiny_sd15: Path, make_service: Callable[..., RunningService]
) -> None:
    service = make_service(
        project="acme", model=tiny_llm, image_model=tiny_sd15, trigger_samples=len(THINGS), holdout_every=2,
        replay_share=0, learning_rate=1e-2, epochs=60, gate_forgetting=1000, lease_seconds=10,
        image_epochs=6, image_learning_rate=3e-3, image_lora_r=4, gate_max_drawn=2, gate_draw_steps=2,
    )  # fmt: skip
    service.start()
    service.wait_ready()
    picks = []
    for number, thing in enumerate(THINGS):
        brief = f"Write the prompt for an image model.\nBrief: {thing}"
        answer = service.client.ask(brief, max_tokens=8)
        warm, cold = (upload(service.client, shape(number, kind)) for kind in (True, False))
        picks.append(
            ImagePicked(
                project="acme", picked=(warm,), over=(cold,), prompt=WORDS, generation=answer.generation
            )
        )
    service.client.send_feedback(picks)
    wait_for(lambda: list(service.home.glob("gates/*/notes.jsonl")), 500, service.what_happened)
    service.kill()
    service.start()
    service.wait_ready()
    wait_for(lambda: service.client.loop().outcome, 500, service.what_happened)

    live, [version] = service.client.versions()
    assert (service.client.loop().outcome, live, version.state) == ("promoted", 1, VersionState.LIVE), (
        version.gate
    )
    assert version.text_adapter and version.image_adapter and version.gate
    told = {(measure.metric, measure.slice) for measure in version.gate.measures}
    assert {("log_likelihood", "all"), ("denoising_loss", "written"), ("pick_accuracy", "all")} <= told
    shown = [item for item in version.gate.items if item.slice == "picture"]
    assert len(shown) == len(THINGS) // 2 and {item.candidate_answer for item in shown} == {WORDS}
    assert "GET /v1/versions/1/sheet?project=acme" in render_text(version.gate)
    with Image.open(io.BytesIO(service.client.sheet(1))) as sheet:
        assert sheet.format == "PNG" and sheet.height > 2 * 256
    assert not list(service.home.glob("gates/*"))
