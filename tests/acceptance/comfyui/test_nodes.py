"""The node pack in a real ComfyUI process, against the real service."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest

from comfyloop.records import Version
from comfyloop.settings import Settings
from comfyloop.store import open_store, versions
from tests.acceptance.comfyui.conftest import HERE, RunningComfyUI
from tests.acceptance.conftest import RunningService, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def painter(prompt: str = "a red fox", count: int = 1, size: int = 64) -> dict[str, Any]:
    return node("TestPainter", prompt=prompt, size=size, count=count, api_key="sk-secret-1")


def ask(**inputs: Any) -> dict[str, Any]:
    return node(
        "ComfyLoopAsk",
        **{"question": "What is it?", "model": "", "temperature": 0.0, "max_tokens": 8, "seed": 1} | inputs,
    )


def connect(comfyui: RunningComfyUI, service: RunningService, **settings: Any) -> None:
    comfyui.call("/comfyloop/settings", {"url": service.client.url, **settings})


def stored(service: RunningService) -> list[dict[str, Any]]:
    return list(service.client.call("GET", "/v1/feedback", project="acme", limit=1000)["items"])


def test_ask_review_and_pick_arrive_in_the_store(comfyui: RunningComfyUI, service: RunningService) -> None:
    comfyui.start()
    connect(comfyui, service)
    graph = {
        "1": painter(count=3),
        "2": ask(images=["1", 0]),
        "3": node("ComfyLoopReview", text=["2", 0], mode="pause", timeout=60, generation=["2", 1]),
        "4": node(
            "ComfyLoopPickImages",
            images=["1", 0],
            mode="pause",
            timeout=60,
            prompt=["3", 0],
            generation=["2", 1],
        ),
        "5": node("SaveImage", images=["4", 0], filename_prefix="kept"),
        "6": node("ComfyLoopSaveSample", question="What?", answer=["3", 0], project="", images=["4", 0]),
    }
    run = comfyui.queue(graph)
    review = comfyui.pause("comfyloop.review")
    comfyui.call(
        "/comfyloop/review", {**review, "action": "accept", "text": "A fox in the snow.", "rating": 2}
    )
    pick = comfyui.pause("comfyloop.pick")
    assert pick["prompt"] == "A fox in the snow." and len(pick["shown"]) == 3
    second = pick["shown"][1]
    body = {**pick, "picked": [second], "ratings": {second: 5}, "reason": "sharper"}
    comfyui.call("/comfyloop/pick", body)
    entry = comfyui.ended(run)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(entry["outputs"]["5"]["images"]) == 1
    wait_for(lambda: comfyui.waiting() == 0, 20)
    found = {item["kind"]: item for item in stored(service)}
    assert found["answer_edited"]["edited"] == "A fox in the snow."
    assert found["answer_rated"]["rating"] == 2
    assert found["image_picked"]["picked"] == [second] and len(found["image_picked"]["over"]) == 2
    assert found["image_picked"]["comment"] == "sharper"
    assert found["image_rated"]["image"] == second
    assert found["sample_uploaded"]["messages"][-1]["content"][0]["text"] == "A fox in the snow."
    assert len(found) == 5 and comfyui.call("/comfyloop/state")["refused"] == 0


def test_edits_between_runs_are_captured_without_secrets(
    comfyui: RunningComfyUI, service: RunningService
) -> None:
    comfyui.start()
    graph = {"1": painter(), "2": node("SaveImage", images=["1", 0], filename_prefix="a")}
    connect(comfyui, service)
    comfyui.run(graph)
    comfyui.run(graph | {"1": painter("a blue fox")})  # capture is off
    connect(comfyui, service, capturing=True)
    comfyui.run(graph)
    edited = graph | {"1": painter("a red fox in snow")}
    comfyui.run(edited)
    comfyui.run(edited | {"1": painter("a red fox in snow", size=128)})
    wait_for(lambda: len(stored(service)) == 2, 20, lambda: str(stored(service)))
    prompt, graph_edit = stored(service)
    assert (prompt["before"], prompt["after"]) == ("a red fox", "a red fox in snow")
    assert len(prompt["images_before"]) == len(prompt["images_after"]) == 1
    assert prompt["images_before"] != prompt["images_after"]
    assert graph_edit["kind"] == "graph_edited" and graph_edit["after"]["1"]["inputs"]["size"] == 128
    assert len(graph_edit["kept"]) == 1
    assert "sk-secret" not in str(stored(service))


def test_with_the_service_killed_nothing_is_lost_or_doubled(
    comfyui: RunningComfyUI, service: RunningService
) -> None:
    comfyui.start()
    connect(comfyui, service)
    graph = {"1": painter(), "2": ask(images=["1", 0]), "3": node("PreviewAny", source=["2", 0])}

    def save(text: str) -> dict[str, Any]:
        return {
            "1": painter(),
            "2": node("ComfyLoopSaveSample", question="What?", answer=text, project="", images=["1", 0]),
        }

    for number in range(5):
        comfyui.run(save(f"before {number}"))
    service.kill()
    for number in range(5):
        comfyui.run(save(f"while away {number}"))
    assert comfyui.waiting() >= 5
    failed = comfyui.ended(comfyui.queue(graph))
    assert failed["status"]["status_str"] == "error"
    assert "Start it with `comfyloop up`" in str(failed["status"]["messages"])
    comfyui.stop()  # and ComfyUI dies too
    comfyui.start()
    assert comfyui.waiting() >= 5
    service.start()
    service.wait_ready()
    connect(comfyui, service)
    for number in range(3):
        comfyui.run(save(f"after {number}"))
    wait_for(lambda: comfyui.waiting() == 0, 60)
    answers = sorted(item["messages"][-1]["content"][0]["text"] for item in stored(service))
    assert answers == sorted(
        [f"before {n}" for n in range(5)]
        + [f"while away {n}" for n in range(5)]
        + [f"after {n}" for n in range(3)]
    )


def test_a_pause_can_be_rejected_timed_out_and_interrupted(
    comfyui: RunningComfyUI, service: RunningService
) -> None:
    comfyui.start()
    connect(comfyui, service)
    graph = {
        "1": ask(),
        "2": node("ComfyLoopReview", text=["1", 0], mode="pause", timeout=60, generation=["1", 1]),
        "3": node("PreviewAny", source=["2", 0]),
    }
    run = comfyui.queue(graph)
    comfyui.call("/comfyloop/review", {**comfyui.pause("comfyloop.review"), "action": "reject"})
    entry = comfyui.ended(run)
    assert entry["status"]["status_str"] == "success" and "3" not in entry["outputs"]
    graph["2"]["inputs"]["timeout"] = 5
    entry = comfyui.run(graph)
    assert entry["outputs"]["2"]["comfyloop_review"][0]["note"] == "timeout" and "3" in entry["outputs"]
    graph["2"]["inputs"]["timeout"] = 61
    run = comfyui.queue(graph)
    comfyui.pause("comfyloop.review")
    with pytest.raises(ValueError):
        comfyui.call("/interrupt", {})  # its answer is empty
    assert "execution_interrupted" in str(comfyui.ended(run)["status"]["messages"])
    wait_for(lambda: len(stored(service)) == 1, 20)
    assert stored(service)[0]["rating"] == 1


def test_bad_input_gets_a_sentence(comfyui: RunningComfyUI, service: RunningService) -> None:
    comfyui.start()
    connect(comfyui, service)

    def sentence(graph: dict[str, Any]) -> str:
        entry = comfyui.ended(comfyui.queue(graph))
        assert entry["status"]["status_str"] == "error"
        return str(
            next(m[1]["exception_message"] for m in entry["status"]["messages"] if m[0] == "execution_error")
        )

    assert "There is no project 'nowhere'" in sentence({"1": ask(model="nowhere")})
    assert "question is empty" in sentence({"1": ask(question=" ")})
    wide = {"1": node("EmptyImage", width=16384, height=8, batch_size=1, color=0), "2": ask(images=["1", 0])}
    wide["3"] = node(
        "ImageStitch",
        image1=["1", 0],
        image2=["1", 0],
        direction="right",
        match_image_size=False,
        spacing_width=0,
        spacing_color="white",
    )
    wide["2"]["inputs"]["images"] = ["3", 0]
    assert "32768 x 8 pixels" in sentence(wide)
    assert "not a URL" in comfyui.refused("/comfyloop/settings", {"url": "nonsense"})
    assert "1 to 5" in comfyui.refused("/comfyloop/review", {"text": "x", "action": "accept", "rating": 9})
    saved = {"1": node("ComfyLoopSaveSample", question="q", answer="a", project="nowhere")}
    comfyui.run(saved)
    wait_for(lambda: comfyui.call("/comfyloop/state")["refused"] == 1, 20)
    assert "There is no project 'nowhere'" in str(comfyui.call("/comfyloop/refused"))


def test_live_lora_changes_the_picture_when_the_live_version_changes(
    comfyui: RunningComfyUI, service: RunningService, tmp_path: Path
) -> None:
    models = comfyui.base / "models"
    subprocess.run(
        [comfyui.python, str(HERE / "tiny_checkpoint.py"), str(models / "checkpoints"), str(tmp_path / "loras")],
        cwd=comfyui.directory, env=comfyui.environment, check=True, timeout=120,
    )  # fmt: skip
    with (store := open_store(Settings(home=service.home))).begin() as conn:
        for number, name in ((1, "v1"), (2, "v2"), (3, "peft")):
            versions.add(
                conn,
                Version(
                    project="acme",
                    number=number,
                    image_adapter=str(tmp_path / "loras" / f"{name}.safetensors"),
                ),
            )
    store.close()
    comfyui.start()
    connect(comfyui, service)
    graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
        "2": node("CLIPTextEncode", text="a fox", clip=["1", 1]),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node("ComfyLoopLiveLora", model=["1", 0], project="", strength=1.0),
        "6": node("KSampler", model=["5", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0],
                  seed=1, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0),
        "7": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
        "8": node("PreviewImage", images=["7", 0]),
    }  # fmt: skip

    def picture(graph: dict[str, Any]) -> bytes:
        import io

        from PIL import Image

        (name,) = comfyui.run(graph)["outputs"]["8"]["images"]
        return Image.open(io.BytesIO((comfyui.base / "temp" / name["filename"]).read_bytes())).tobytes()

    def executed(graph: dict[str, Any]) -> bool:
        """Whether Live LoRA ran, rather than having its last output used again."""
        messages = dict(comfyui.run(graph)["status"]["messages"])
        return "5" not in messages["execution_cached"]["nodes"]

    bare = copy.deepcopy(graph)
    bare["6"]["inputs"]["model"] = ["1", 0]
    del bare["5"]
    untouched = picture(bare)
    assert picture(graph) == untouched
    pictures = {0: untouched}
    for number in (1, 2):
        service.client.promote(number)
        wait_for(lambda n=number: comfyui.call("/comfyloop/state")["live"] == n, 10)
        pictures[number] = picture(graph)
        assert not executed(graph)
    assert len(set(pictures.values())) == 3
    assert (
        "NOT LOADED" not in comfyui.log.read_text() and "lora key not loaded" not in comfyui.log.read_text()
    )
    service.client.rollback()
    wait_for(lambda: comfyui.call("/comfyloop/state")["live"] == 1, 10)
    assert picture(graph) == pictures[1]
    service.client.promote(3)  # a file whose keys ComfyUI would drop with a warning
    wait_for(lambda: comfyui.call("/comfyloop/state")["live"] == 3, 10)
    failed = comfyui.ended(comfyui.queue(graph))
    assert "1 of 1 tensors have no place in it" in str(failed["status"]["messages"])
