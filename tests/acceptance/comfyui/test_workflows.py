"""The workflows of the templates dialog, run to their ends in a real ComfyUI with both embedded starters."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.client.calls import CIRCLE
from comfyloop.comfyui import pack_folder
from comfyloop.starter.image import denoiser
from tests.acceptance.comfyui.conftest import RunningComfyUI, connect
from tests.acceptance.comfyui.test_nodes import stored
from tests.acceptance.comfyui.workflow import set_inputs, to_api
from tests.acceptance.conftest import RunningService, wait_for
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]

Template = Callable[[str], dict[str, Any]]


@pytest.fixture
def painting(comfyui: RunningComfyUI) -> RunningComfyUI:
    """ComfyUI as `link --image-model` leaves it, with a picture to start from."""
    told = CliRunner().invoke(app, ["comfyui", "link", str(comfyui.base), "--image-model"])
    assert told.exit_code == 0, told.output
    shutil.copy(REPOSITORY / "tests" / "integration" / "chelsea.jpg", comfyui.base / "input" / "cat.jpg")
    comfyui.start()
    return comfyui


@pytest.fixture
def template(painting: RunningComfyUI) -> Template:
    """Loads a workflow by its name, as it comes but for the picture that a person chooses."""
    info = painting.call("/object_info")

    def load(name: str) -> dict[str, Any]:
        graph = to_api(pack_folder() / "workflows" / f"{name}.json", info)
        if name != "brand painter":
            set_inputs(graph, "LoadImage", image="cat.jpg")
        return graph

    return load


def kept_pictures(comfyui: RunningComfyUI, entry: dict[str, Any]) -> int:
    assert entry["status"]["status_str"] == "success", entry["status"]
    images = [image for output in entry["outputs"].values() for image in output.get("images", ())]
    kept = [comfyui.base / "output" / image["filename"] for image in images if image["type"] == "output"]
    for path in kept:
        picture = Image.open(path)
        assert picture.size == (denoiser.SIDE, denoiser.SIDE) and len(picture.getcolors(1 << 20) or ()) > 100
    return len(kept)


def test_the_three_workflows_run_to_their_ends_and_every_event_arrives_once(
    painting: RunningComfyUI, template: Template, starter: Path, make_service: Callable[..., RunningService]
) -> None:
    service = make_service(project="acme", trigger_samples=1_000_000)
    service.start()
    service.wait_ready()
    connect(painting, service, capturing=True)

    # pet on holiday: an answer about a picture is rewritten, painted from, and two of four pictures are picked
    run = painting.queue(template("pet on holiday"), "pet")
    review = painting.pause("comfyloop.review")
    words = review["text"].split()
    assert words and review["version"] == "acme@base"
    # the starter goes round here ("a cat, a cat, …"), which is ended long before max_tokens
    assert Counter(words).most_common(1)[0][1] <= CIRCLE["min_count"] + 1, review["text"]
    painting.call(
        "/comfyloop/review", {**review, "action": "accept", "text": "A cat on a red towel.", "rating": 2}
    )
    pick = painting.pause("comfyloop.pick")
    assert pick["prompt"] == "A cat on a red towel." and len(set(pick["shown"])) == 4
    first, _, third, _ = pick["shown"]
    painting.call("/comfyloop/pick", {**pick, "picked": [first, third], "ratings": {first: 5}})
    assert kept_pictures(painting, painting.ended(run)) == 2

    # brand painter: the copy passes and is judged later; the service dies before the prompt is reviewed
    run = painting.queue(template("brand painter"), "brand")
    review = painting.pause("comfyloop.review")
    assert review["about"] == "prompt" and review["text"].strip()
    recent = painting.call("/comfyloop/recent")["answers"]
    wait_for(lambda: painting.waiting() == 0, 30)
    service.kill()
    painting.call("/comfyloop/review", {**review, "action": "accept", "text": "cotton pillow, morning light"})
    pick = painting.pause("comfyloop.pick")
    painting.call("/comfyloop/pick", {**pick, "picked": pick["shown"][:1], "reason": "calm"})
    assert kept_pictures(painting, painting.ended(run)) == 1
    copy = next(a for a in recent if a["about"] == "answer" and "slogan" in a["question"])
    painting.call("/comfyloop/review", {**copy, "action": "reject"})

    # label by hand, twice while the service is away, once more when it is back
    label = template("label by hand")
    for answer in ("A tabby cat.", "A cat with green eyes."):
        set_inputs(label, "ComfyLoopSaveSample", answer=answer)
        painting.run(label, "label")
    assert painting.waiting() == 5
    service.start()
    service.wait_ready()
    connect(painting, service)
    set_inputs(label, "ComfyLoopSaveSample", answer="A cat that looks away.")
    painting.run(label, "label")
    wait_for(lambda: painting.waiting() == 0, 60, lambda: str(painting.call("/comfyloop/state")))

    items = stored(service)
    assert painting.call("/comfyloop/state")["refused"] == 0
    assert len({item["id"] for item in items}) == len(items)
    assert Counter(item["kind"] for item in items) == {
        "answer_edited": 1,
        "answer_rated": 2,
        "image_picked": 2,
        "image_rated": 1,
        "prompt_edited": 1,
        "sample_uploaded": 3,
    }
    picks = [item for item in items if item["kind"] == "image_picked"]
    assert [(len(p["picked"]), len(p["over"])) for p in picks] == [(2, 2), (1, 3)]
    assert picks[1]["prompt"] == "cotton pillow, morning light" and picks[1]["comment"] == "calm"
    snapshot = service.client.snapshot()
    assert snapshot.by_kind["sft"] >= 5 and snapshot.by_kind["image_pair"] == 7, snapshot
