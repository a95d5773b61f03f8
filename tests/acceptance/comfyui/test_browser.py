"""The pack in the real page: Debian's Chromium on ComfyUI's own frontend, LiteGraph and (COMFYUI_FRONTEND) Vue nodes.

Screenshots go to artefacts/comfyui/.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfyloop.comfyui import pack_folder
from tests.acceptance.comfyui.conftest import RunningComfyUI
from tests.acceptance.comfyui.test_nodes import connect, stored
from tests.acceptance.conftest import RunningService, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ARTEFACTS = Path("artefacts/comfyui")
BROWSER = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY = "() => window.LiteGraph?.registered_node_types?.ComfyLoopAsk && (window.app ?? window.comfyAPI.app.app)?.canvas"
BUILD = """async (vue) => {
  const app = window.app ?? window.comfyAPI.app.app;
  if (vue) await app.extensionManager.setting.set("Comfy.VueNodes.Enabled", true);
  app.graph.clear();
  const make = (type, x, y) => {
    const node = window.LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    return node;
  };
  const paint = make("TestPainter", 40, 110), ask = make("ComfyLoopAsk", 40, 430);
  const review = make("ComfyLoopReview", 460, 110), pick = make("ComfyLoopPickImages", 820, 110);
  const save = make("SaveImage", 1260, 110);
  paint.widgets.find((w) => w.name === "count").value = 4;
  const tokens = ask.widgets.find((w) => w.name === "max_tokens");
  tokens.value = 12;
  ask.widgets.find((w) => w.name === "control_after_generate").value = "fixed";
  paint.connect(0, ask, "images"); ask.connect(0, review, "text"); ask.connect(1, review, "generation");
  paint.connect(0, pick, "images"); review.connect(0, pick, "prompt"); ask.connect(1, pick, "generation");
  pick.connect(0, save, "images");
  app.canvas.ds.scale = 0.85; app.canvas.ds.offset = [10, 10];
  app.canvas.setDirty(true, true);
  window.testApp = app;
}"""


@pytest.fixture(params=["litegraph", "vue"])
def page(request: pytest.FixtureRequest, comfyui: RunningComfyUI, service: RunningService) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="NOT PROVED: Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("NOT PROVED: chromium is not installed, so the page was not tried")
    options = []
    if request.param == "vue":
        frontend = os.environ.get("COMFYUI_FRONTEND", "")
        if not frontend:
            pytest.skip(
                "NOT PROVED: COMFYUI_FRONTEND (a folder of a 1.58 frontend) is not set, so Vue nodes were not tried"
            )
        options = ["--front-end-root", frontend]
    comfyui.start(*options)
    connect(comfyui, service, capturing=True)
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=BROWSER)
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.name = request.param
        page.goto(comfyui.url)
        page.wait_for_function(READY, timeout=90_000)
        page.wait_for_timeout(3000)  # the page goes on configuring itself after it is usable
        page.keyboard.press("Escape")
        yield page
        browser.close()


def shot(page: Any, name: str) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(ARTEFACTS / f"{page.name}-{name}.png"))


def run(page: Any) -> None:
    page.evaluate("() => window.testApp.queuePrompt(0)")


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
    prompt = page.locator("textarea:not(.cl-text)").first
    prompt.fill("a blue fox in snow")
    run(page)
    judge(page, "Another poster.")
    pick(page, 1)
    wait_for(
        lambda: any(i["kind"] == "prompt_edited" for i in stored(service)), 30, lambda: str(stored(service))
    )
    (edit,) = [item for item in stored(service) if item["kind"] == "prompt_edited"]
    assert (edit["before"], edit["after"]) == ("a red fox", "a blue fox in snow")

    # a link is moved: the pictures are saved without the pick (judged already, so nothing pauses again)
    page.evaluate("() => { const g = window.testApp.graph, n = (t) => g._nodes.find((x) => x.type === t);"
                  " n('TestPainter').connect(0, n('SaveImage'), 'images'); }")  # fmt: skip
    run(page)
    wait_for(
        lambda: any(i["kind"] == "graph_edited" for i in stored(service)), 30, lambda: str(stored(service))
    )

    page.click(".comfyloop-tab-button, [aria-label=ComfyLoop]")
    page.wait_for_selector(".cl-sidebar .cl-dot.on")
    page.wait_for_selector(".cl-sidebar .cl-live")
    page.wait_for_timeout(1500)
    shot(page, "sidebar")
    assert page.locator(".cl-sidebar .cl-review").count() == 2
    page.locator(".cl-sidebar .cl-capture input").uncheck()
    wait_for(lambda: comfyui.call("/comfyloop/state")["capturing"] is False, 10)


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
