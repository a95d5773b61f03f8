from __future__ import annotations

import copy
import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from comfyui.capture import Capture
from comfyui.config import Config
from comfyui.feedback import of_pick, of_review
from comfyui.host import Host
from comfyui.images import ImageError, check_size, from_tensor, sha256, without_metadata


def png(colour: str, text: str = "") -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", text)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


GRAPH = {
    "1": {"class_type": "Text", "inputs": {"text": "a fox", "api_key": "sk-1"}},
    "2": {"class_type": "Paint", "inputs": {"positive": ["1", 0], "steps": 4}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
}


class ComfyUI:
    """The host's side of capture, with a history that the test fills as ComfyUI would."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.kept, self.images = folder, [], {}
        self.history: dict[str, dict] = {}
        host = Host(
            self.history.get,
            lambda _: False,
            lambda: False,
            lambda name: folder / name["filename"],
            lambda c, n: "prompt" if n == "text" else "data" if n == "image" else "value",
        )
        self.capture = Capture(host, lambda: config, self.keep)
        self.capture.start()

    def keep(self, items: list[dict], images: dict[str, bytes]) -> None:
        self.kept += items
        self.images |= images

    def run(
        self, graph: dict, colour: str, status: str = "success", workflow: str = "w", page: dict | None = None
    ) -> None:
        shown = {"id": workflow, **(page or {})}
        request = {"prompt": graph, "client_id": "page", "extra_data": {"extra_pnginfo": {"workflow": shown}}}
        self.capture.on_prompt(request)
        if "prompt_id" not in request:
            return
        (self.folder / f"{colour}.png").write_bytes(png(colour, "sk-1"))
        outputs = {"3": {"images": [{"filename": f"{colour}.png", "subfolder": "", "type": "output"}]}}
        self.history[request["prompt_id"]] = {"status": {"status_str": status}, "outputs": outputs}
        self.settle()

    def settle(self, ended: bool = True) -> None:
        """Until capture's thread is through what it was told and, where they have `ended`, with all runs."""
        self._reach()
        while ended and self.capture._open:
            self._reach()
        self._reach()  # a run is no longer open while it is still being compared

    def _reach(self) -> None:
        reached = threading.Event()
        self.capture._new.put(reached.set)
        assert reached.wait(60)


@pytest.fixture
def comfyui(tmp_path: Path) -> ComfyUI:
    return ComfyUI(tmp_path, Config(project="acme", capture=("acme",)))


def edited(**changes: object) -> dict:
    graph = copy.deepcopy(GRAPH)
    for key, value in changes.items():
        node, name = key[1:].split("_", 1)
        graph[node]["inputs"][name] = value
    return graph


def test_an_edited_prompt_comes_with_the_images_of_both_runs(comfyui: ComfyUI) -> None:
    comfyui.run(copy.deepcopy(GRAPH), "red")
    comfyui.run(edited(n1_text="a blue fox"), "blue")
    (item,) = comfyui.kept
    assert (item["kind"], item["before"], item["after"]) == ("prompt_edited", "a fox", "a blue fox")
    red, blue = sha256(without_metadata(png("red"))), sha256(without_metadata(png("blue")))
    assert (item["images_before"], item["images_after"]) == ([red], [blue])
    assert set(comfyui.images) == {red, blue}
    assert b"sk-1" not in b"".join(comfyui.images.values())


def test_a_changed_value_is_a_graph_edit_without_secrets(comfyui: ComfyUI) -> None:
    comfyui.run(copy.deepcopy(GRAPH), "red")
    comfyui.run(edited(n2_steps=8, n1_api_key="sk-1-other"), "blue")
    (item,) = comfyui.kept
    assert item["kind"] == "graph_edited" and item["after"]["2"]["inputs"]["steps"] == 8
    assert len(item["kept"]) == 1 and "sk-1" not in str(item)


def test_a_failed_run_is_no_edit_and_the_next_is_compared_with_the_last_good_one(comfyui: ComfyUI) -> None:
    comfyui.run(copy.deepcopy(GRAPH), "red")
    comfyui.run(edited(n2_steps=-1), "green", status="error")
    comfyui.run(edited(n2_steps=8), "blue")
    (item,) = comfyui.kept
    assert item["before"]["2"]["inputs"]["steps"] == 4


def test_the_same_again_and_other_workflows_say_nothing(comfyui: ComfyUI) -> None:
    comfyui.run(copy.deepcopy(GRAPH), "red")
    comfyui.run(copy.deepcopy(GRAPH), "red")
    comfyui.run(edited(n2_steps=8), "blue", workflow="another")
    assert comfyui.kept == []


def test_another_picture_to_work_on_and_another_question_are_no_edits(comfyui: ComfyUI) -> None:
    comfyui.run(edited(n2_image="cat.png"), "red")
    comfyui.run(edited(n2_image="dog.png"), "blue")
    assert comfyui.kept == []


def page_of(*nodes: str, notes: tuple[str, ...] = (), groups: tuple[str, ...] = ()) -> dict:
    """A workflow in the page's form: nodes as "id type"."""
    made = [dict(zip(("id", "type"), node.split(), strict=True)) for node in nodes]
    made += [{"id": 90 + n, "type": "MarkdownNote", "widgets_values": [text]} for n, text in enumerate(notes)]
    return {"nodes": made, "groups": [{"title": title} for title in groups]}


NODES = ("1 Text", "2 Paint", "3 SaveImage", "4 Load", "5 Scale")


@pytest.mark.parametrize(
    "other",
    [
        page_of(*NODES, notes=("Another template",)),
        page_of(*NODES, notes=("About it",), groups=("Step 2",)),
        page_of(
            "1 Load", "2 Text", "3 Scale", "4 Paint", "5 SaveImage", notes=("About it",), groups=("Step 1",)
        ),
        page_of(*NODES, notes=("About it",), groups=("Step 1",))
        | {"definitions": {"subgraphs": [{"id": "s"}]}},
    ],
    ids=["notes", "groups", "other nodes", "another subgraph in place of a group"],
)
def test_another_template_of_the_same_id_is_no_edit(comfyui: ComfyUI, other: dict) -> None:
    first = page_of(*NODES, notes=("About it",), groups=("Step 1",))
    if "definitions" in other:
        first["groups"], other = [{"title": "Mine"}], other | {"groups": []}
    comfyui.run(copy.deepcopy(GRAPH), "red", page=first)
    comfyui.run(edited(n1_text="a red fox", n2_steps=8), "blue", page=other)
    assert comfyui.kept == []


def test_work_on_one_workflow_is_an_edit_also_where_nodes_and_notes_come_or_go(comfyui: ComfyUI) -> None:
    comfyui.run(copy.deepcopy(GRAPH), "red", page=page_of(*NODES, notes=("About it",)))
    later = page_of(*NODES, "6 Sharpen", notes=("About it", "try more steps"))
    comfyui.run(edited(n2_steps=8), "blue", page=later)
    assert [item["kind"] for item in comfyui.kept] == ["graph_edited"]


def placed(shift: int = 0, moved: int = 0, links: tuple[int, ...] = (1, 2, 3, 4)) -> dict:
    """The five nodes in a row, of which the first so many stand elsewhere."""
    page = page_of(*NODES)
    for place, node in enumerate(page["nodes"]):
        node["pos"] = [100 * place + (shift if place < moved else 0), 0]
    return page | {"links": [[id, id, 0, id + 1, 0, "IMAGE"] for id in links]}


@pytest.mark.parametrize(
    ("later", "same"),
    [
        (placed(shift=40, moved=2), True),
        (placed(shift=40, moved=3), False),  # a template made from another one, and laid out anew
        (placed(links=(1, 2, 3, 9)), True),
        (placed(links=(1, 2, 8, 9)), False),
    ],
    ids=["few moved", "most moved", "one link", "half of the links"],
)
def test_where_the_page_said_nothing_most_stands_and_is_linked_as_it_was(
    comfyui: ComfyUI, later: dict, same: bool
) -> None:
    comfyui.run(copy.deepcopy(GRAPH), "red", page=placed())
    comfyui.run(edited(n2_steps=8), "blue", page=later)
    assert bool(comfyui.kept) == same


def test_a_workflow_that_the_page_knows_may_be_laid_out_and_linked_anew(comfyui: ComfyUI) -> None:
    comfyui.capture.opened("page", "workflows/a.json")
    comfyui.run(copy.deepcopy(GRAPH), "red", page=placed())
    comfyui.run(edited(n2_steps=8), "blue", page=placed(shift=40, moved=5, links=(7, 8, 9, 10)))
    assert [item["kind"] for item in comfyui.kept] == ["graph_edited"]


def test_a_page_that_does_not_know_what_it_shows_has_said_nothing(comfyui: ComfyUI) -> None:
    comfyui.capture.opened("page", "its name")
    comfyui.capture.opened("page", "")
    comfyui.run(copy.deepcopy(GRAPH), "red", page=placed())
    comfyui.run(edited(n2_steps=8), "blue", page=placed(shift=40, moved=5, links=(7, 8, 9, 10)))
    assert comfyui.kept == []


def test_workflows_of_two_nodes_that_share_none_are_two(comfyui: ComfyUI) -> None:
    comfyui.run(copy.deepcopy(GRAPH), "red", page=page_of("1 Text", "2 Paint"))
    comfyui.run(edited(n2_steps=8), "blue", page=page_of("8 Load", "9 Scale"))
    assert comfyui.kept == []


def test_two_workflows_that_one_page_has_open_are_two(comfyui: ComfyUI) -> None:
    comfyui.capture.opened("page", "workflows/a.json")
    comfyui.run(copy.deepcopy(GRAPH), "red")
    comfyui.capture.opened("page", "workflows/b.json")
    comfyui.run(edited(n2_steps=8), "blue")
    assert comfyui.kept == []
    comfyui.run(edited(n2_steps=9), "green")
    assert [item["before"]["2"]["inputs"]["steps"] for item in comfyui.kept] == [8]


def test_a_text_that_chance_had_a_part_in_is_no_edit(comfyui: ComfyUI) -> None:
    heard = iter([{("1", "text"): "a red fox"}, {("1", "text"): "a blue hen"}])
    object.__setattr__(comfyui.capture._host, "heard", lambda _: next(heard))
    comfyui.run(edited(n1_text="a {red|blue} fox"), "red")
    comfyui.run(edited(n1_text="a {red|blue} hen"), "blue")
    assert comfyui.kept == []


def test_a_graph_edit_says_what_it_was_for_and_what_was_picked(comfyui: ComfyUI) -> None:
    comfyui.run(copy.deepcopy(GRAPH), "red")
    graph = edited(n2_steps=8)
    request = {"prompt": graph, "prompt_id": "p", "extra_data": {"extra_pnginfo": {"workflow": {"id": "w"}}}}
    comfyui.capture.on_prompt(request)
    comfyui.capture.picked("p", ["f" * 64])
    comfyui.capture.picked("of another run", ["e" * 64])
    comfyui.settle(ended=False)
    comfyui.history["p"] = {
        "status": {"status_str": "success"},
        "outputs": {"3": {"images": [{"filename": "red.png"}]}},
    }
    comfyui.settle()
    (item,) = comfyui.kept
    assert item["aim"] == "a fox" and item["kept"] == ["f" * 64]


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"prompt": None, "extra_data": {"extra_pnginfo": {"workflow": {"id": "w"}}}},
        {"prompt": {"1": 7}, "extra_data": {"extra_pnginfo": {"workflow": {"id": "w"}}}},
        {"prompt": {}, "extra_data": []},
        {"prompt": {}, "extra_data": {"extra_pnginfo": "x"}},
    ],
)
def test_whatever_is_queued_capture_does_not_raise(comfyui: ComfyUI, request_: dict) -> None:
    assert comfyui.capture.on_prompt(request_) is request_


def test_a_script_that_queues_prompts_is_not_captured(comfyui: ComfyUI) -> None:
    for text in ("a fox", "a hen"):
        request = {"prompt": edited(n1_text=text), "client_id": "script"}
        assert comfyui.capture.on_prompt(request) is request and "prompt_id" not in request


def test_nothing_is_captured_unless_it_was_turned_on(tmp_path: Path) -> None:
    comfyui = ComfyUI(tmp_path, Config(project="acme"))
    comfyui.run(copy.deepcopy(GRAPH), "red")
    comfyui.run(edited(n1_text="a blue fox"), "blue")
    assert comfyui.kept == []


def test_a_prompt_costs_less_than_a_millisecond(comfyui: ComfyUI) -> None:
    graph = {
        str(n): {"class_type": "Text", "inputs": {"text": "x" * 50, "a": [str(n - 1), 0]}} for n in range(200)
    }
    seconds = []
    request = {"prompt": graph, "extra_data": {"extra_pnginfo": {"workflow": {"id": "w"}}}}
    for _ in range(300):
        started = time.perf_counter()
        comfyui.capture.on_prompt(request)
        seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[len(seconds) // 2] < 0.001


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"<html>", png("red")[:60]])
def test_broken_images_are_named_as_such(data: bytes) -> None:
    with pytest.raises(ImageError):
        without_metadata(data)


def test_an_image_too_large_is_refused_in_words() -> None:
    with pytest.raises(ImageError, match="20000 x 20000"):
        check_size(20_000, 20_000)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (1, 0, 8, 3), (8, 8, 3)])
def test_an_empty_image_is_refused_in_words(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="The image is empty"):
        from_tensor(np.zeros(shape))


def test_a_review_says_what_the_person_did() -> None:
    kinds = lambda *a, **k: [i["kind"] for i in of_review("acme", *a, **k)]  # noqa: E731
    assert kinds("accept", "new", "old", "gen_1") == ["answer_edited"]
    assert kinds("accept", "new", "old", "gen_1", "prompt", rating=5) == ["prompt_edited", "answer_rated"]
    assert kinds("accept", "old", "old", "gen_1") == ["answer_accepted"]
    assert kinds("reject", "old", "old", "gen_1") == ["answer_rated"]
    assert kinds("accept", "new", "old") == ["prompt_edited"]
    assert kinds("accept", "old", "old") == []


def test_a_pick_says_what_it_was_chosen_over() -> None:
    pick, rated = of_pick("acme", ["a", "b", "c"], ["b"], {"b": 5}, "a fox", "", "sharper")
    assert (pick["picked"], pick["over"], pick["comment"]) == (["b"], ["a", "c"], "sharper")
    assert (rated["image"], rated["rating"], rated["prompt"]) == ("b", 5, "a fox")
    assert "workflow" not in pick
    [pick] = of_pick("acme", ["a"], ["a"], {}, workflow=GRAPH)
    assert pick["workflow"] == GRAPH
