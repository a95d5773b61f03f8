"""The pair gate draws in the real ComfyUI, by the workflow of the person's picks, and without it when it is away."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyloop.loop.pictures import COMFYUI
from comfyloop.records import ImagePicked, Version
from comfyloop.settings import Settings
from comfyloop.store import open_store, versions
from comfyloop.train.image import checkpoint
from comfyloop.train.specs.judge import seed_of
from tests.acceptance.comfyui.conftest import HERE, TOKEN, RunningComfyUI, connect
from tests.acceptance.comfyui.test_image_lora import stirred
from tests.acceptance.comfyui.test_nodes import node, stored
from tests.acceptance.conftest import RunningService, wait_for
from tests.acceptance.test_image_loop import upload
from tests.integration.train.test_image_runs import shape

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORKFLOW = {
    "1": node("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
    "2": node("CLIPTextEncode", text="a fox", clip=["1", 1]),
    "3": node("CLIPTextEncode", text="", clip=["1", 1]),
    "4": node("EmptyLatentImage", width=64, height=64, batch_size=2),
    "5": node("ComfyLoopLiveLora", model=["1", 0], project="", strength=1.0),
    "6": node("KSampler", model=["5", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0],
              seed=1, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0),
    "7": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
    "8": node("ComfyLoopPickImages", images=["7", 0], mode="pause", timeout=600),
    "9": node("SaveImage", images=["8", 0], filename_prefix="fox"),
}  # fmt: skip


def test_both_versions_are_drawn_as_the_person_draws(
    comfyui: RunningComfyUI, make_service: Callable[..., RunningService], tiny_vlm: Path, tmp_path: Path
) -> None:
    checkpoints = comfyui.base / "models" / "checkpoints"
    command = [comfyui.python, str(HERE / "tiny_checkpoint.py"), str(checkpoints), str(tmp_path / "loras")]
    subprocess.run(command, cwd=comfyui.directory, env=comfyui.environment, check=True, timeout=180)
    model = checkpoints / "tiny.safetensors"
    adapter = stirred(checkpoint.load(model), tmp_path, text_encoder=False)
    service = make_service(
        project="acme", model=tiny_vlm, image_model=model, token=TOKEN, trigger_samples=1_000_000, holdout_every=2,
        image_resolution=64, image_min_samples=2, gate_max_drawn=2, gate_draw_steps=1, comfyui_url=comfyui.url,
    )  # fmt: skip
    service.start()
    service.wait_ready()
    comfyui.start()
    connect(comfyui, service, capturing=True)

    run = comfyui.queue(WORKFLOW)
    pick = comfyui.pause("comfyloop.pick")
    comfyui.call("/comfyloop/pick", {**pick, "picked": pick["shown"][:1]})
    comfyui.ended(run)
    wait_for(lambda: stored(service), 30)
    [item] = stored(service)
    assert item["kind"] == "image_picked" and item["workflow"] == WORKFLOW
    picks = []
    for number in range(11):
        picked, over = (upload(service.client, shape(number, warm)) for warm in (True, False))
        picks.append(ImagePicked(project="acme", picked=(picked,), over=(over,), prompt=f"thing {number}"))
    service.client.send_feedback(picks)
    snapshot = service.client.snapshot()
    with (store := open_store(Settings(home=service.home))).begin() as conn:
        made = Version(project="acme", number=1, snapshot=snapshot.id, image_adapter=str(adapter))
        versions.add(conn, made)
    store.close()

    before = set(comfyui.call("/history"))
    report = service.client.gate(1)
    assert COMFYUI in report.reasons, report.reasons
    measured = {measure.metric for measure in report.measures}
    assert {"denoising_loss", "pick_margin", "text_similarity", "kept_similarity"} <= measured
    drawn = [entry for id, entry in comfyui.call("/history").items() if id not in before]
    graphs = [entry["prompt"][2] for entry in drawn]
    assert [graph["5"]["inputs"]["project"] for graph in graphs] == ["acme@base"] * 2 + ["acme@1"] * 2
    asked = [(graph["2"]["inputs"]["text"], graph["6"]["inputs"]["seed"]) for graph in graphs]
    assert asked[:2] == asked[2:] and len(set(asked)) == 2
    prompts = {item.reference: seed_of(item.sample) for item in report.items if item.slice == "picture"}
    assert all(prompts[text] == seed for text, seed in asked)
    pictures = [picture_of(comfyui, entry) for entry in drawn]
    assert len(set(pictures)) == 4
    with Image.open(io.BytesIO(service.client.sheet(1))) as sheet:
        assert sheet.height > 2 * 256
    assert [path.name for path in (comfyui.base / "output").iterdir()] == ["fox_00001_.png"]

    assert service.client.gate(1).measures == report.measures  # the same, whenever it is asked
    comfyui.stop()
    away = service.client.gate(1)
    assert any(
        "by diffusers, since ComfyUI could not: No ComfyUI answers at" in reason for reason in away.reasons
    )
    assert away.sheet not in (None, report.sheet)


def picture_of(comfyui: RunningComfyUI, entry: dict[str, Any]) -> bytes:
    [name] = entry["outputs"]["comfyloop-shown"]["images"]
    with Image.open(comfyui.base / name["type"] / name["filename"]) as picture:
        assert json.loads(picture.info["prompt"])
        return picture.tobytes()
