"""The pack in the real page: Debian's Chromium on ComfyUI's own frontend, LiteGraph and, of a newer one, Vue nodes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from comfyloop.comfyui import pack_folder
from comfyloop.records import GateReport, Measure, Version
from comfyloop.settings import Settings
from comfyloop.store import open_store, versions
from tests.acceptance.comfyui.browser import BUILD, READY, open_sidebar, run, shot
from tests.acceptance.comfyui.conftest import RunningComfyUI
from tests.acceptance.comfyui.test_nodes import stored
from tests.acceptance.conftest import RunningService, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WITHOUT_PICK = """() => {
  const graph = window.testApp.graph, of = (type) => graph._nodes.find((node) => node.type === type);
  graph.remove(of("ComfyLoopPickImages"));
  of("TestPainter").connect(0, of("SaveImage"), "images");
}"""
ANSWER = ".cl-sidebar .cl-card:has(.cl-icon)"


def judge(page: Any, text: str) -> None:
    page.wait_for_selector(".cl-review .cl-wait", timeout=30_000)
    page.fill(".cl-review textarea", text)
    page.click(".cl-review .cl-star:nth-child(2)")
    page.click(".cl-review .cl-button.primary")


def pick(page: Any, number: int) -> None:
    page.wait_for_selector(".cl-pick .cl-wait", timeout=30_000)
    page.click(f".cl-pick .cl-cell:nth-child({number}) .cl-image")
    page.click(f".cl-pick .cl-cell:nth-child({number}) .cl-star:nth-child(5)")
    shot(page, f"pick-{number}")
    page.click(".cl-pick .cl-button.primary")


def review_in_sidebar(page: Any, text: str) -> None:
    """Run, and answer the review from the sidebar, wherever its node is."""
    run(page)
    page.wait_for_selector(".cl-sidebar .cl-wait", timeout=30_000)
    page.locator(".cl-sidebar .cl-card:has(.cl-wait) textarea").fill(text)
    page.locator(".cl-sidebar .cl-card:has(.cl-wait) .cl-button.primary").click()
    page.wait_for_selector(".cl-sidebar .cl-wait", state="detached", timeout=30_000)


def arrives(service: RunningService, kind: str, **fields: Any) -> dict[str, Any]:
    """The piece of feedback that has these fields, once it is in the store."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        items = [item for item in stored(service) if item["kind"] == kind]
        found[:] = [item for item in items if all(item[name] == value for name, value in fields.items())]
        return bool(found)

    wait_for(look, 30, lambda: str(stored(service)))
    return found[0]


def test_what_a_person_does_in_the_page_arrives(
    page: Any, comfyui: RunningComfyUI, service: RunningService
) -> None:
    page.evaluate(BUILD, page.name == "vue")
    page.wait_for_timeout(1000)
    run(page)
    judge(page, "A poster of autumn.")
    pick(page, 2)
    wait_for(lambda: len(stored(service)) == 4, 30, lambda: str(stored(service)))
    kinds = {item["kind"] for item in stored(service)}
    assert kinds == {"answer_edited", "answer_rated", "image_picked", "image_rated"}

    page.wait_for_timeout(1000)  # the run has ended; then a prompt is typed over and a value changed
    prompt = page.locator("textarea:not([class*=cl-])").first
    prompt.fill("a blue fox in snow")
    run(page)
    judge(page, "Another poster.")
    pick(page, 1)
    arrives(service, "prompt_edited", before="a red fox", after="a blue fox in snow")

    # a link is moved: the pictures are saved without the pick (judged already, so nothing pauses again)
    page.evaluate("() => { const g = window.testApp.graph, n = (t) => g._nodes.find((x) => x.type === t);"
                  " n('TestPainter').connect(0, n('SaveImage'), 'images'); }")  # fmt: skip
    run(page)
    assert arrives(service, "graph_edited")["kept"]

    # afterwards, from the sidebar: an answer is written anew, another picture is picked
    open_sidebar(page)
    assert page.locator(ANSWER).count() == 2
    assert page.locator("[data-cl-capturing]").count() == 1  # seen at a glance
    shot(page, "sidebar")
    answer = page.locator(ANSWER).first
    answer.locator("textarea").fill("A poster of winter.")
    answer.locator(".cl-icon").first.click()
    arrives(service, "answer_edited", edited="A poster of winter.")
    grid = page.locator(".cl-sidebar .cl-pick").first
    grid.locator(".cl-cell:nth-child(3) .cl-image").click()
    grid.locator(".cl-button.primary").click()
    wait_for(lambda: len([i for i in stored(service) if i["kind"] == "image_picked"]) == 3, 30)
    count = "(n) => document.querySelector('.cl-next').textContent.startsWith(`${n} `)"
    page.wait_for_function(count, arg=len(stored(service)), timeout=20_000)

    page.locator(".cl-sidebar .cl-capture input").uncheck()
    wait_for(lambda: comfyui.call("/comfyloop/state")["capturing"] is False, 10)
    page.wait_for_selector("[data-cl-capturing]", state="detached")
    before = len(stored(service))
    prompt.fill("a green fox")
    run(page)
    page.wait_for_timeout(3000)
    assert len(stored(service)) == before


def test_half_typed_text_outlasts_the_time_out_and_another_tab_shows_the_pause(
    page: Any, comfyui: RunningComfyUI, service: RunningService
) -> None:
    other = page.context.new_page()
    other.goto(comfyui.url)
    other.wait_for_function(READY, timeout=90_000)
    open_sidebar(other)
    page.bring_to_front()
    page.evaluate(BUILD, page.name == "vue")
    page.evaluate(
        "() => window.testApp.graph._nodes.find((n) => n.type === 'ComfyLoopReview')"
        ".widgets.find((w) => w.name === 'timeout').value = 12"
    )
    run(page)
    page.wait_for_selector(".cl-review .cl-wait", timeout=30_000)
    page.fill(".cl-review textarea", "A half-typed")
    page.click(".cl-review .cl-star:nth-child(4)")
    assert "Not kept yet" in page.locator(".cl-review .cl-outcome").inner_text()
    other.wait_for_selector(".cl-sidebar .cl-review .cl-wait", timeout=5_000)
    page.wait_for_selector(".cl-pick .cl-wait", timeout=30_000)  # the time is over, and the workflow went on
    page.wait_for_function(
        "() => document.querySelector('.cl-review .cl-outcome').textContent.includes('Time')"
    )
    assert page.input_value(".cl-review textarea") == "A half-typed"
    page.click(".cl-review .cl-button.primary")
    arrives(service, "answer_edited", edited="A half-typed")


def test_closing_the_browser_ends_the_pause_and_keeps_what_was_half_typed(
    page: Any, comfyui: RunningComfyUI, service: RunningService
) -> None:
    page.evaluate(BUILD, page.name == "vue")
    page.evaluate(WITHOUT_PICK)
    run(page)
    page.wait_for_selector(".cl-review .cl-wait", timeout=30_000)
    page.fill(".cl-review textarea", "A half-typed")
    page.click(".cl-review .cl-star:nth-child(4)")

    page.reload()  # which is no going away
    page.wait_for_function(READY, timeout=90_000)
    open_sidebar(page)
    assert page.input_value(".cl-sidebar .cl-review:has(.cl-wait) textarea") == "A half-typed"

    browser = page.context
    browser.new_page()  # of no ComfyUI: a browser without any ends
    page.close()
    closed = time.monotonic()
    queue = lambda: comfyui.call("/queue")  # noqa: E731
    wait_for(lambda: not queue()["queue_running"], 60, lambda: str(queue()))  # the pause's own time is 600 s
    assert time.monotonic() - closed > 10  # it waited for one that is only reloaded
    (entry,) = comfyui.call("/history").values()
    assert entry["status"]["status_str"] == "success"
    (review,) = (out["comfyloop_review"] for out in entry["outputs"].values() if "comfyloop_review" in out)
    assert review[0]["note"] == "gone" and review[0]["text"] == review[0]["original"]

    again = browser.new_page()
    again.goto(comfyui.url)
    again.wait_for_function(READY, timeout=90_000)
    open_sidebar(again)
    card = again.locator(ANSWER).first
    assert card.locator("textarea").input_value() == "A half-typed"
    assert "Not kept yet" in card.locator(".cl-outcome").inner_text()
    again.name = page.name
    shot(again, "half-typed")
    card.locator(".cl-icon").first.click()
    arrives(service, "answer_edited", edited="A half-typed")
    arrives(service, "answer_rated", rating=4)


def test_a_version_goes_live_in_the_page_and_is_rolled_back_there(
    page: Any, comfyui: RunningComfyUI, service: RunningService, tmp_path: Path
) -> None:
    lora = tmp_path / "v1.safetensors"
    lora.write_bytes(b"never loaded here")
    measure = Measure(
        metric="log_likelihood", slice="prompt", items=8, live=-2.31, candidate=-1.04, low=0.9, high=1.6
    )
    report = GateReport(
        project="acme",
        live=0,
        candidate=1,
        verdict="promote",
        reasons=("It is better.",),
        measures=(measure,),
    )
    with (store := open_store(Settings(home=service.home))).begin() as conn:
        versions.add(conn, Version(project="acme", number=1, image_adapter=str(lora), gate=report))
    store.close()
    open_sidebar(page)
    service.client.promote(1)
    page.wait_for_function(
        "() => document.querySelector('.cl-live')?.textContent === 'acme@1'", timeout=20_000
    )
    assert "log likelihood, prompt: -2.31 → -1.04" in page.inner_text(".cl-better")
    page.wait_for_timeout(500)
    shot(page, "version")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(".cl-rollback")
    page.wait_for_function(
        "() => document.querySelector('.cl-live')?.textContent !== 'acme@1'", timeout=20_000
    )
    assert service.client.versions()[0] == 0


def test_nodes_in_a_subgraph_are_captured_and_reviewed(
    page: Any, comfyui: RunningComfyUI, service: RunningService
) -> None:
    page.evaluate(BUILD, page.name == "vue")
    page.evaluate(WITHOUT_PICK)
    open_sidebar(page)
    review_in_sidebar(page, "A fox.")
    arrives(service, "answer_edited", edited="A fox.")
    page.wait_for_timeout(1000)
    page.evaluate(
        """() => {
          const graph = window.testApp.graph, inside = ["TestPainter", "ComfyLoopAsk", "ComfyLoopReview"];
          graph.convertToSubgraph(new Set(graph._nodes.filter((node) => inside.includes(node.type))));
          window.testInside = graph._nodes.find((node) => node.subgraph);
          const ask = window.testInside.subgraph._nodes.find((node) => node.type === "ComfyLoopAsk");
          ask.widgets.find((widget) => widget.name === "question").value = "What else?";
        }"""
    )
    review_in_sidebar(
        page, "A red fox."
    )  # the same graph, of which nodes have other ids, asked anew: no edit
    arrives(service, "answer_edited", edited="A red fox.")
    page.wait_for_timeout(1500)
    assert {item["kind"] for item in stored(service)} == {"answer_edited"}
    page.evaluate(
        """() => {
          const painter = window.testInside.subgraph._nodes.find((node) => node.type === "TestPainter");
          painter.widgets.find((widget) => widget.name === "prompt").value = "a blue fox in snow";
        }"""
    )
    review_in_sidebar(page, "A blue fox.")
    edit = arrives(service, "prompt_edited", before="a red fox", after="a blue fox in snow")
    path, _ = edit["node"].rsplit(":", 1)
    assert path.startswith(page.evaluate("() => `${window.testInside.id}:`"))
    assert len(edit["images_before"]) == len(edit["images_after"]) == 4


def test_another_workflow_in_the_place_of_a_closed_one_is_no_edit(
    page: Any, comfyui: RunningComfyUI, service: RunningService
) -> None:
    """As templates that share an id, opened one after another: id, nodes, links and the tab's name are the same."""
    page.evaluate(BUILD, page.name == "vue")
    page.evaluate(WITHOUT_PICK)
    page.evaluate(
        """() => {
          const graph = window.testApp.graph;
          for (const node of [...graph._nodes]) if (node.type.startsWith("ComfyLoop")) graph.remove(node);
        }"""
    )
    prompt = """(text) => window.testApp.graph._nodes.find((node) => node.type === "TestPainter")
      .widgets.find((widget) => widget.name === "prompt").value = text"""
    runs = lambda number: wait_for(  # noqa: E731
        lambda: len(comfyui.call("/history")) == number, 60, lambda: str(comfyui.call("/queue"))
    )
    run(page)
    runs(1)
    names = page.evaluate(
        """async () => {
          const app = window.testApp, store = app.extensionManager.workflow, shown = app.graph.serialize();
          const first = store.activeWorkflow;
          await app.loadGraphData({ version: 0.4, nodes: [], links: [], last_node_id: 0, last_link_id: 0 });
          await store.closeWorkflow(first);
          await app.loadGraphData(shown);
          return [first.path, store.activeWorkflow.path];
        }"""
    )
    assert names[0] == names[1]
    page.evaluate(prompt, "a red fox in snow")
    run(page)
    runs(2)
    page.evaluate(prompt, "a red fox in rain")
    run(page)
    runs(3)
    arrives(service, "prompt_edited", after="a red fox in rain")
    assert [item["before"] for item in stored(service)] == ["a red fox in snow"]


def test_the_page_speaks_chinese(page: Any) -> None:
    page.evaluate("() => window.comfyAPI.app.app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_function(READY, timeout=90_000)
    page.wait_for_timeout(3000)
    page.keyboard.press("Escape")
    page.evaluate(BUILD, page.name == "vue")
    open_sidebar(page)
    page.wait_for_timeout(1500)
    shot(page, "chinese")
    assert page.inner_text(".cl-sidebar h3 >> nth=0") == "最近的回答"
    title = page.evaluate("() => window.testApp.graph._nodes.find((n) => n.type === 'ComfyLoopReview').title")
    assert title == "审阅 (ComfyLoop)"


def test_the_workflows_open_from_the_templates_dialog(page: Any, comfyui: RunningComfyUI) -> None:
    names = {path.stem for path in (pack_folder() / "workflows").glob("*.json")}
    assert (
        names
        == set(comfyui.call("/api/workflow_templates")["comfyloop"])
        == {"brand painter", "label by hand", "pet on holiday"}
    )
    for name in sorted(names):
        found = page.evaluate(
            """async (name) => {
              const app = window.app ?? window.comfyAPI.app.app;
              const answer = await fetch(`/api/workflow_templates/comfyloop/${encodeURIComponent(name)}.json`);
              await app.loadGraphData(await answer.json());
              const { output } = await app.graphToPrompt();
              return Object.values(output).map((node) => node.class_type);
            }""",
            name,
        )
        assert any(kind.startswith("ComfyLoop") for kind in found)
        page.wait_for_timeout(800)
        shot(page, f"template-{name.replace(' ', '-')}")
        assert page.locator("text=Invalid workflow").count() == 0
