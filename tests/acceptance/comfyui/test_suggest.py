"""*Suggest the next edit* in the real page, over an engine that says word for word what it is told to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.comfyui.browser import BUILD, open_sidebar, shot
from tests.acceptance.comfyui.conftest import TOKEN
from tests.acceptance.conftest import RunningService, wait_for
from tests.unit.serve.gateway import INSTANT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OUTPUT = "async () => (await window.testApp.graphToPrompt()).output"
NODE = "window.testApp.graph._nodes.find((node) => node.type === '{}')"
BETWEEN = r"set 1.count = 2\nadd +1 ImageInvert\nconnect 4.0 -> +1.image\nconnect +1.0 -> 5.images"
REFUSED = {
    "A cat, a cat": "no edit of this workflow: in the line 'A cat, a cat', there is no step",
    "set 99.count = 2": "there is no node 99",
    "set 1.count = 99": "count of TestPainter cannot be 99: it goes from 1 to 16",
    r"add +1 Nonsense\nconnect 1.0 -> +1.image": "there is no node class 'Nonsense' here",
    "connect 2.0 -> 5.images": "images of SaveImage takes IMAGE, not STRING",
    "remove 1": "would have nothing at images",
}


@pytest.fixture
def service(make_service: Callable[..., RunningService], tmp_path: Path) -> Iterator[RunningService]:
    port_file = tmp_path / "instant.port"
    with subprocess.Popen([sys.executable, str(INSTANT), "--port-file", str(port_file)]) as engine:
        try:
            wait_for(port_file.exists, 30)
            url = f"http://127.0.0.1:{port_file.read_text().strip()}"
            service = make_service(project="acme", engine="url", engine_url=url, token=TOKEN)
            service.start()
            service.wait_ready()
            yield service
        finally:
            engine.kill()


def suggest(page: Any, says: str) -> str:
    """Ask for the next edit, which the model gives as it is told here; returns what the card says then."""
    page.fill(".cl-suggest .cl-aim", f"say word for word <<{says}>>")
    page.click(".cl-suggest .cl-button.primary >> nth=0")
    page.wait_for_function("() => !document.querySelector('.cl-suggest .cl-button').disabled", timeout=30_000)
    return str(page.inner_text(".cl-suggest .cl-steps") + page.inner_text(".cl-suggest .cl-outcome"))


def apply(page: Any) -> None:
    page.click(".cl-suggest >> text=Apply")
    page.wait_for_selector(".cl-suggest >> text=Applied")


def test_the_next_edit_is_suggested_applied_when_told_and_taken_back(page: Any) -> None:
    page.evaluate(BUILD, page.name == "vue")
    page.wait_for_timeout(500)
    open_sidebar(page)
    before = page.evaluate(OUTPUT)
    is_refused_in_words(page, before)
    is_applied_and_taken_back(page, before)
    is_applied_in_a_subgraph(page)


def is_refused_in_words(page: Any, before: Any) -> None:
    for says, why in REFUSED.items():
        assert why in suggest(page, says)
        assert page.locator(".cl-suggest >> text=Apply").count() == 0
    shot(page, "refused")
    assert page.evaluate(OUTPUT) == before


def is_applied_and_taken_back(page: Any, before: Any) -> None:
    names = {node["class_type"]: key for key, node in before.items()}
    told = suggest(page, BETWEEN)
    assert "count: 4 → 2" in told and "Invert" in told and len(told.splitlines()) == 4
    assert page.evaluate(OUTPUT) == before  # nothing is applied by itself
    shot(page, "suggested")
    apply(page)
    after = page.evaluate(OUTPUT)
    (invert,) = (key for key, node in after.items() if node["class_type"] == "ImageInvert")
    assert after[invert]["inputs"] == {"image": [names["ComfyLoopPickImages"], 0]}
    assert after[names["SaveImage"]]["inputs"]["images"] == [invert, 0]
    assert after[names["TestPainter"]]["inputs"]["count"] == 2
    page.wait_for_timeout(500)
    shot(page, "applied")
    page.click(".cl-suggest >> text=Undo")
    page.wait_for_selector(".cl-suggest >> text=Taken back")
    page.wait_for_timeout(500)
    assert page.evaluate(OUTPUT) == before

    suggest(page, BETWEEN)
    apply(page)
    page.keyboard.press("Control+z")
    page.wait_for_timeout(1000)
    assert page.evaluate(OUTPUT) == before

    suggest(page, BETWEEN)  # and the workflow is changed before it is applied
    page.evaluate(f"() => ({NODE.format('TestPainter')}.widgets.find((w) => w.name === 'size').value = 32)")
    page.click(".cl-suggest >> text=Apply")
    page.wait_for_selector(".cl-suggest >> text=The workflow was changed since")
    assert len(page.evaluate(OUTPUT)) == len(before)


def is_applied_in_a_subgraph(page: Any) -> None:
    page.evaluate(
        """() => {
          const graph = window.testApp.graph, inside = ["TestPainter", "ComfyLoopAsk"];
          graph.convertToSubgraph(new Set(graph._nodes.filter((node) => inside.includes(node.type))));
        }"""
    )
    before = page.evaluate(OUTPUT)
    (painter,) = (key for key, node in before.items() if node["class_type"] == "TestPainter")
    assert ":" in painter
    suggest(page, r"set 1.prompt = \"a blue fox\"\nset 1.count = 3".replace('\\"', '"'))
    apply(page)
    after = page.evaluate(OUTPUT)
    assert after[painter]["inputs"] == before[painter]["inputs"] | {"prompt": "a blue fox", "count": 3}
    suggest(page, r"connect 1.0 -> 5.images")  # from inside to outside
    page.click(".cl-suggest >> text=Apply")
    page.wait_for_selector(".cl-suggest >> text=different subgraphs")
    assert page.evaluate(OUTPUT) == after
