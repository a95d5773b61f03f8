"""The node pack in a real ComfyUI process, against the real service."""

from __future__ import annotations

import copy
import io
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyloop.records import ImagePicked, Version
from comfyloop.settings import Settings
from comfyloop.store import open_store, versions
from tests.acceptance.comfyui.conftest import HERE, RunningComfyUI, connect
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


def sentence(comfyui: RunningComfyUI, graph: dict[str, Any]) -> str:
    """What a run that must fail says."""
    entry = comfyui.ended(comfyui.queue(graph))
    assert entry["status"]["status_str"] == "error", entry
    return str(
        next(m[1]["exception_message"] for m in entry["status"]["messages"] if m[0] == "execution_error")
    )


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


def picked_from(graph: dict[str, Any], comfyui: RunningComfyUI) -> dict[str, Any]:
    """What a pick shows that does not wait."""
    return dict(comfyui.run(graph)["outputs"]["4"]["comfyloop_pick"][0])


def test_a_pick_knows_the_text_that_chance_wrote_also_from_the_cache(comfyui: RunningComfyUI) -> None:
    comfyui.start()
    graph = {
        "1": node("TestWildcards", template="a {colour} fox", seed=1),
        "2": {**painter(), "inputs": painter()["inputs"] | {"prompt": ["1", 0]}},
        "4": node("ComfyLoopPickImages", images=["2", 0], mode="pass", timeout=60),
    }
    assert picked_from(graph, comfyui)["prompt"] == "a blue fox"
    graph["4"]["inputs"]["timeout"] = 61  # the others are cached now
    assert picked_from(graph, comfyui)["prompt"] == "a blue fox"
    graph["1"]["inputs"]["seed"] = 2
    assert picked_from(graph, comfyui)["prompt"] == "a green fox"
    comfyui.call("/comfyloop/settings", {"excluded": ["TestPainter"]})
    graph["1"]["inputs"]["seed"] = 3
    shown = picked_from(graph, comfyui)
    assert shown["prompt"] == "" and "excluded" in shown["why"]


def test_the_grid_shows_the_best_first_when_asked(comfyui: RunningComfyUI, service: RunningService) -> None:
    comfyui.start()
    connect(comfyui, service)
    graph = {
        "1": painter(count=3),
        "4": node("ComfyLoopPickImages", images=["1", 0], mode="pass", timeout=60, best_first=True),
    }
    shown = picked_from(graph, comfyui)
    assert [image["sha256"] for image in shown["images"]] == shown["shown"]  # nothing is known yet
    assert "at least 4" in shown["taste"]
    for number in range(5):
        dark, light = (solid(shade + number) for shade in (0, 200))
        picked, over = (service.client.upload_image(data) for data in (dark, light))
        service.client.send_feedback(
            [ImagePicked(project="acme", picked=(picked,), over=(over,), prompt="a")]
        )
    graph["4"]["inputs"]["timeout"] = 61
    shown = picked_from(graph, comfyui)
    assert "Your taste is known" in shown["taste"]
    ranked = service.client.call("POST", "/v1/taste/rank", {"images": shown["shown"]}, project="acme")
    order = [image["sha256"] for image in shown["images"]]
    assert order == [image["sha256"] for image in ranked["images"]] and sorted(order) == sorted(
        shown["shown"]
    )
    service.stop()
    graph["4"]["inputs"]["timeout"] = 62
    shown = picked_from(graph, comfyui)
    assert [image["sha256"] for image in shown["images"]] == shown["shown"] and "Not ordered" in shown[
        "taste"
    ]


def solid(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_of_several_sizes_are_one_choice(comfyui: RunningComfyUI) -> None:
    comfyui.start()
    graph = {
        "1": painter(count=2),
        "3": node("TestSizes", images=["1", 0]),
        "4": node("ComfyLoopPickImages", images=["3", 0], mode="pause", timeout=60),
        "5": node("SaveImage", images=["4", 0], filename_prefix="kept"),
    }
    run = comfyui.queue(graph)
    pick = comfyui.pause("comfyloop.pick")
    assert len(pick["shown"]) == 6 and pick["prompt"] == "a red fox"
    comfyui.call("/comfyloop/pick", {**pick, "picked": [pick["shown"][1], pick["shown"][4]]})
    entry = comfyui.ended(run)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(entry["outputs"]["5"]["images"]) == 2
    assert comfyui.waiting() == 1 and not comfyui.call("/comfyloop/state")["pauses"]


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
    assert "Start it with `comfyloop up`" in sentence(comfyui, graph)
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
    assert "There is no project 'nowhere'" in sentence(comfyui, {"1": ask(model="nowhere")})
    assert "question is empty" in sentence(comfyui, {"1": ask(question=" ")})
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
    assert "32768 x 8 pixels" in sentence(comfyui, wide)
    assert "not a URL" in comfyui.refused("/comfyloop/settings", {"url": "nonsense"})
    assert "1 to 5" in comfyui.refused("/comfyloop/review", {"text": "x", "action": "accept", "rating": 9})
    saved = {"1": node("ComfyLoopSaveSample", question="q", answer="a", project="nowhere")}
    comfyui.run(saved)
    wait_for(lambda: comfyui.call("/comfyloop/state")["refused"] == 1, 20)
    assert "There is no project 'nowhere'" in str(comfyui.call("/comfyloop/refused"))
    service.client.call("POST", "/v1/projects", {"name": "nowhere"})
    assert comfyui.call("/comfyloop/retry", {}) == {"queued": 1}
    wait_for(lambda: comfyui.waiting() == 0, 20)
    assert comfyui.call("/comfyloop/state")["refused"] == 0

    saved["1"]["inputs"] |= {"project": "acme", "answer": "kept while the token was wrong"}
    comfyui.call("/comfyloop/settings", {"token": "wrong"})
    assert "refused the token" in sentence(comfyui, {"1": ask()})
    comfyui.run(saved)
    wait_for(lambda: "refused the token" in comfyui.call("/comfyloop/state")["why"], 20)
    assert comfyui.waiting() == 1
    with other_version() as url:
        comfyui.call("/comfyloop/settings", {"url": url})
        assert "is version 9.9.9 and the node pack" in sentence(comfyui, {"1": ask(seed=2)})
        wait_for(lambda: "is version 9.9.9" in comfyui.call("/comfyloop/state")["why"], 20)
    assert comfyui.waiting() == 1
    connect(comfyui, service)
    wait_for(lambda: comfyui.waiting() == 0, 20)
    assert "kept while the token was wrong" in str(stored(service))


@contextmanager
def other_version() -> Iterator[str]:
    """What of a service of another version the pack gets to see."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"status": "ok", "version": "9.9.9"}')

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_full_disk_pauses_capture_in_words_and_stops_nothing(comfyui: RunningComfyUI) -> None:
    disk = comfyui.base / "user" / "comfyloop"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(disk)]
    if (made := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip(f"NOT PROVED: a small file system cannot be mounted here: {made.stderr.strip()}")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(960_000))
        comfyui.start()
        comfyui.call("/comfyloop/settings", {"capturing": True})
        saved = {
            "1": painter(size=512, count=4),
            "2": node("ComfyLoopSaveSample", question="q", answer="a", project="", images=["1", 0]),
        }
        told = sentence(comfyui, saved)
        assert "Capture is paused" in told and "No space left on device" in told and "Free some space" in told
        assert "Capture is paused" in comfyui.call("/comfyloop/state")["problem"]
        for prompt in ("a red fox", "a blue fox in snow"):  # an edit that cannot be kept stops nobody
            comfyui.run(
                {"1": painter(prompt, size=512), "2": node("SaveImage", images=["1", 0], filename_prefix="a")}
            )
        ballast.unlink()
        comfyui.run(saved)
        assert comfyui.call("/comfyloop/state")["problem"] == "" and comfyui.waiting() >= 1
    finally:
        comfyui.stop()
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_the_service_knows_while_comfyui_works_and_not_while_it_waits_for_a_person(
    comfyui: RunningComfyUI, service: RunningService
) -> None:
    comfyui.start()
    connect(comfyui, service)
    busy = lambda: service.client.call("GET", "/v1/busy")["busy"]  # noqa: E731
    assert busy() == []
    run = comfyui.queue({
        "1": painter(),
        "2": node("TestSlow", images=["1", 0], seconds=3.0),
        "3": node("ComfyLoopPickImages", images=["2", 0], mode="pause", timeout=60),
    })  # fmt: skip
    queued = time.monotonic()
    wait_for(busy, 5)
    assert time.monotonic() - queued < 2.0
    pick = comfyui.pause("comfyloop.pick")
    wait_for(lambda: not busy(), 5)  # a person looks at pictures: training may go on
    comfyui.call("/comfyloop/pick", {**pick, "picked": pick["shown"]})
    comfyui.ended(run)
    wait_for(lambda: not busy(), 5)


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
        wait_for(lambda n=number: comfyui.call("/comfyloop/state")["live"] == n, 10)  # type: ignore[misc]
        pictures[number] = picture(graph)
        assert not executed(graph)
    assert len(set(pictures.values())) == 3
    assert (
        "NOT LOADED" not in comfyui.log.read_text() and "lora key not loaded" not in comfyui.log.read_text()
    )
    service.client.rollback()
    wait_for(lambda: comfyui.call("/comfyloop/state")["live"] == 1, 10)
    assert picture(graph) == pictures[1]
    service.kill()  # while it is away the version that was applied stays, also over a restart
    assert not executed(graph) and picture(graph) == pictures[1]
    comfyui.stop()
    comfyui.start()
    assert picture(graph) == pictures[1]
    service.start()
    service.wait_ready()
    connect(comfyui, service)
    service.client.promote(3)  # a file whose keys ComfyUI would drop with a warning
    wait_for(lambda: comfyui.call("/comfyloop/state")["live"] == 3, 10)
    failed = comfyui.ended(comfyui.queue(graph))
    assert "1 of 1 tensors have no place in it" in str(failed["status"]["messages"])
