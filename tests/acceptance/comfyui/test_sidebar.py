"""The sidebar in a real page over the pack's own routes and a real service; ComfyUI's two scripts are stood in for."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from comfyloop import web as web_pages
from comfyloop.comfyui import pack_folder
from comfyloop.records import CanaryVerdict, Loop
from comfyloop.settings import Settings
from comfyloop.store import loops, versions
from comfyui import routes
from comfyui.host import Host
from comfyui.launch import RECORD
from comfyui.pack import Pack
from tests.acceptance.comfyui.browser import BROWSER, shot
from tests.unit.serve.gateway import Gateway, instant, running_gateway
from tests.unit.web.studio import furnish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPTS = {
    "api.js": """export const api = {
        clientId: "page", fetchApi: (path, options) => fetch(path, options),
        apiURL: (path) => path, addEventListener() {},
    };""",
    "app.js": """export const app = { extensionManager: { setting: {
        get: () => new URLSearchParams(location.search).get("lang"),
    } } };""",
}
PAGE = """<link rel=stylesheet href=/extensions/comfyloop/style.css><body style="background: #222"><div id=root></div>
<script type=module>
  import { renderSidebar } from "/extensions/comfyloop/sidebar.js";
  window.sidebar = renderSidebar(document.getElementById("root"));
</script>"""
PLAIN, GRAND = "A steel mug for daily use.", "Behold wondrous craftsmanship, born from fire!"


def artefacts() -> Path:
    folder = Path("artefacts/comfyui")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    settings = Settings(home=tmp_path / "home", project="acme", port=0)
    with running_gateway(settings, instant(), front=web_pages.install) as running:
        yield running


@contextmanager
def comfyui_page(pack: Pack) -> Iterator[str]:
    """What ComfyUI's server gives to the page; yields its URL."""
    loop, ready, where = asyncio.new_event_loop(), threading.Event(), []
    table = web.RouteTableDef()
    routes.add(table, pack)

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def script(request: web.Request) -> web.Response:
        return web.Response(text=SCRIPTS[request.match_info["name"]], content_type="text/javascript")

    async def serve() -> None:
        app = web.Application()
        app.add_routes([*table, web.get("/", page), web.get("/scripts/{name}", script)])
        app.router.add_static("/extensions/comfyloop", pack_folder() / "web")
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        where.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()

    loop.create_task(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert ready.wait(30)
    yield where[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@pytest.fixture
def page(gateway: Gateway, tmp_path: Path) -> Iterator[Any]:
    with opened_over(gateway.url, tmp_path) as page:
        yield page


@contextmanager
def opened_over(service: str, tmp_path: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="NOT PROVED: Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("NOT PROVED: chromium is not installed, so the page was not tried")
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"url": service, "project": "acme"}))
    host = Host(lambda _: None, lambda _: False, lambda: False, lambda _: None, lambda _c, _i: "value")
    pack = Pack(folder, host, lambda *_: None, lambda: [tmp_path / RECORD])
    pack.start()
    with comfyui_page(pack) as url, playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=BROWSER)
        page = browser.new_context(viewport={"width": 400, "height": 900}).new_page()
        page.at, page.name, page.pack = url, "sidebar", pack
        yield page
        browser.close()
    pack.loop.call_soon_threadsafe(pack.loop.stop)


def opened(page: Any, lang: str, shows: str = ".cl-next") -> None:
    page.goto(f"{page.at}/?lang={lang}")
    page.wait_for_selector(f".cl-sidebar {shows}")


def disagree(gateway: Gateway) -> None:
    for who, wanted in (("anna", PLAIN), ("boris", GRAND)):
        answer = gateway.ask(text="Describe the mug.").json()["id"]
        item = {"kind": "answer_edited", "id": f"fb_{who}", "project": "acme", "author": who}
        sent = gateway.http.post("/v1/feedback", json={**item, "generation": answer, "edited": wanted})
        assert sent.status_code == 201


def test_opposite_answers_are_shown_and_one_is_chosen(gateway: Gateway, page: Any) -> None:
    opened(page, "en")
    assert page.locator(".cl-flag").count() == 0
    disagree(gateway)
    opened(page, "zh")
    page.wait_for_selector(".cl-flag")
    told = page.inner_text(".cl-flag")
    assert "有人想要相反的回答" in told and "Describe the mug." in told
    assert f'anna 想要 "{PLAIN}"' in told and f'boris 想要 "{GRAND}"' in told
    assert page.locator(".cl-flag button").all_inner_texts() == ["以此为准", "以此为准", "都保留", "都不要"]

    opened(page, "en")
    page.wait_for_selector(".cl-flag")
    assert f'anna wants "{PLAIN}"' in page.inner_text(".cl-flag")
    page.click(f".cl-choice:has-text('{GRAND}') button:has-text('This one holds')")
    page.wait_for_selector(".cl-flags >> text=The next run goes by it.")
    assert page.locator(".cl-flag").count() == 0
    assert gateway.http.get("/v1/flags").json() == {"items": []}


def test_an_answer_that_comes_too_late_is_refused_in_words(gateway: Gateway, page: Any) -> None:
    disagree(gateway)
    opened(page, "en")
    page.wait_for_selector(".cl-flag")
    (flag,) = gateway.http.get("/v1/flags").json()["items"]
    assert gateway.http.post(f"/v1/flags/{flag['id']}", json={"keep": "none"}).status_code == 200
    page.click(".cl-flag button:has-text('All of them hold')")
    page.wait_for_selector(".cl-flags .cl-bad >> text=is asked about the feedback")
    assert page.locator(".cl-flag button:enabled").count() == 4


def test_how_a_canary_does_is_told_while_it_runs_and_why_it_ended(gateway: Gateway, page: Any) -> None:
    gateway.add_version(1)
    gateway.services.router.canary("acme", 1, 0.25)
    opened(page, "en")
    page.wait_for_selector(".cl-canary")
    told = page.inner_text(".cl-canary")
    assert "Canary: acme@1 25% · running" in told and "0 of 0 judged answers" in told
    opened(page, "zh")
    page.wait_for_selector(".cl-canary")
    assert "试运行: acme@1 25% · 进行中" in page.inner_text(".cl-canary")

    gateway.services.router.canary("acme", 1, 0.0)
    with gateway.store.begin() as conn:
        report = versions.get(conn, "acme", 1).canary
        assert report is not None
        worse = {
            "verdict": CanaryVerdict.WORSE,
            "reason": "9 of its answers lost 80%.",
            "canary_outcomes": 9,
            "live_outcomes": 11,
        }
        versions.set_canary_report(conn, report.model_copy(update=worse))
        loops.save(conn, Loop(project="acme", outcome="canary", version=1))
    opened(page, "en")
    page.wait_for_selector(".cl-canary .cl-worse")
    told = page.inner_text(".cl-canary")
    assert "worse" in told and "9 of 20 judged answers · 9 of its answers lost 80%." in told


SLOW_TO_COME = """
import sys, time
print("ComfyLoop reads its settings.", flush=True)
time.sleep(120)
"""


def test_a_service_that_does_not_run_is_started_and_stopped(tmp_path: Path) -> None:
    (tmp_path / "comfyloop").mkdir()
    (tmp_path / "comfyloop" / "__init__.py").touch()
    (tmp_path / "comfyloop" / "__main__.py").write_text(SLOW_TO_COME, "utf-8")
    record = {"python": sys.executable, "path": str(tmp_path), "home": str(tmp_path / "home")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with opened_over(url, tmp_path) as page:
        page.on("dialog", lambda dialog: dialog.accept())
        opened(page, "zh", ".cl-launch:has-text('ComfyLoop 未运行')")
        assert "comfyloop comfyui link" in page.inner_text(".cl-launch")  # nothing is recorded yet
        assert not page.is_visible(".cl-start")
        (tmp_path / RECORD).write_text(json.dumps(record), "utf-8")
        opened(page, "en", ".cl-start")
        shot(page, "launch")
        page.click(".cl-start")
        page.wait_for_selector("text=ComfyLoop is starting…")
        page.wait_for_selector(".cl-log:has-text('ComfyLoop reads its settings.')")
        assert not page.is_visible(".cl-start")
        shot(page, "starting")
        page.click(".cl-stop")
        page.wait_for_selector("text=ComfyLoop is not running.")
        assert page.is_visible(".cl-start")


@pytest.fixture
def learnt(gateway: Gateway) -> Gateway:
    """A project with five versions, the fourth of them live."""
    furnish(gateway.store, gateway.services.settings.home)
    gateway.services.router.refresh()
    return gateway


def test_versions_are_told_with_what_changed_and_why_one_stayed_behind(learnt: Gateway, page: Any) -> None:
    opened(page, "en")
    page.click(".cl-versions summary")
    page.wait_for_selector(".cl-version")
    stayed = page.text_content(".cl-stayed")
    assert "v5: why it did not go live" in stayed and "About 9 more held-out corrections" in stayed
    assert page.locator(".cl-example").count() == 3 and page.locator(".cl-example ins").count() > 0
    assert page.locator(".cl-version .cl-tag").all_text_contents() == [
        "candidate", "live", "retired", "rejected", "retired",
    ]  # fmt: skip
    page.screenshot(path=str(artefacts() / "sidebar-versions.png"), full_page=True)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(".cl-rollback")
    page.wait_for_selector(".cl-version:has-text('v3') .cl-tag.live")  # what was opened stays open
    assert learnt.services.router.project("acme").live == 3
    page.click(".cl-version:has-text('v4') >> text=Go forward to it")
    page.wait_for_selector(".cl-version:has-text('v4') .cl-tag.live")
    assert learnt.services.router.project("acme").live == 4


def test_versions_speak_chinese(learnt: Gateway, page: Any) -> None:
    opened(page, "zh")
    page.click(".cl-versions summary")
    page.wait_for_selector(".cl-stayed")
    told = page.text_content(".cl-versions")
    assert "为什么没有上线" in told and "大约再有 9 条留出的修正就能明确" in told and "未通过" in told
    assert "held-out" not in told


def test_a_piece_is_taken_back_and_what_was_refused_is_discarded(learnt: Gateway, page: Any) -> None:
    opened(page, "en")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(".cl-pieces summary")
    first = page.wait_for_selector(".cl-piece").text_content()
    assert "uploaded" in first and "joon" in first
    assert page.is_hidden(".cl-refused")
    page.click(".cl-piece >> nth=0 >> .cl-forget")
    page.wait_for_function(
        "fetch('/comfyloop/pieces').then((a) => a.json()).then((told) => told.items[0].id !== 'fb_up_3')"
    )
    kept = {"kind": "prompt_edited", "id": "fb_nobody", "project": "nobody", "before": "a", "after": "b"}
    page.pack.keep([kept])
    page.wait_for_function(
        "fetch('/comfyloop/state').then((a) => a.json()).then((told) => told.refused === 1)", timeout=60_000
    )
    page.wait_for_function(
        "(sidebar.draw(), document.querySelector('.cl-refused summary').checkVisibility())", polling=1000
    )
    page.click(".cl-refused summary")
    page.wait_for_selector(".cl-refused .cl-bad")
    assert "nobody" in page.text_content(".cl-refused .cl-bad")
    page.click(".cl-discard")
    page.wait_for_selector(".cl-refused", state="hidden")
    assert page.pack.refused == 0


def test_pictures_are_picked_and_rated_full_screen_by_keys(gateway: Gateway, page: Any) -> None:
    opened(page, "en")
    page.evaluate(
        """async () => {
          const { pickPanel } = await import("/extensions/comfyloop/pick.js");
          const images = ["a", "b", "c"].map((sha256) => ({ sha256, filename: `${sha256}.png`, type: "temp" }));
          window.panel = pickPanel();
          const until = Date.now() / 1000 + 90;
          panel.show({ prompt_id: "p", prompt: "a dog", images, shown: ["a", "b", "c"], pause: "one", until });
          document.querySelector("#root").replaceChildren(panel);
        }"""
    )
    assert "(1:" in page.text_content(".cl-wait")
    page.wait_for_function(
        "document.querySelector('.cl-wait').textContent.includes('(1:2')"
    )  # it counts down
    page.click(".cl-cell >> nth=1 >> .cl-large")
    page.wait_for_selector(".cl-viewer[open]")
    assert "2 / 3" in page.text_content(".cl-viewer")
    for key in (" ", "4", "ArrowRight", "b", "b"):  # held against each other: back and forth
        page.keyboard.press(key)
    assert "3 / 3" in page.text_content(".cl-viewer") or "1 / 3" in page.text_content(".cl-viewer")
    page.mouse.move(200, 300)
    page.mouse.wheel(0, -200)
    assert "scale(1.2)" in page.get_attribute(".cl-viewer img", "style")
    page.keyboard.press("0")
    assert "scale(1)" in page.get_attribute(".cl-viewer img", "style")
    page.screenshot(path=str(artefacts() / "pick-full-screen.png"))
    page.keyboard.press("Escape")
    page.wait_for_selector(".cl-viewer", state="detached")
    pressed = page.eval_on_selector_all(
        ".cl-image", "all => all.map((one) => one.getAttribute('aria-pressed'))"
    )
    assert pressed == ["false", "true", "false"]
    assert page.locator(".cl-cell >> nth=1 >> .pi-star-fill").count() == 4
    assert "(1)" in page.text_content(".cl-pick .primary")


def test_words_are_readable_on_a_light_theme(learnt: Gateway, page: Any) -> None:
    opened(page, "en")
    page.add_style_tag(
        content=""":root { --input-text: #222; --comfy-input-bg: #fff; --border-color: #ccc; --descrip-text: #555;
        --error-text: #e00; } body { background: #f5f5f5 !important; }"""
    )
    page.click(".cl-versions summary")
    page.wait_for_selector(".cl-stayed")
    page.screenshot(path=str(artefacts() / "sidebar-light.png"), full_page=True)
    weakest = page.evaluate(
        """() => {
          const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          const shares = [0.2126, 0.7152, 0.0722];
          const light = (colour) => shares.reduce((sum, share, i) => sum + share * linear(colour[i] / 255), 0);
          const draw = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const rgb = (colour) => {
            draw.fillStyle = colour;
            draw.fillRect(0, 0, 1, 1);
            return draw.getImageData(0, 0, 1, 1).data;
          };
          const paper = light(rgb("#f5f5f5"));
          const kinds = ["cl-wait", "cl-better", "cl-worse", "cl-bad", "cl-hint"];
          return Math.min(...kinds.map((kind) => {
            const word = document.querySelector(".cl-sidebar").appendChild(document.createElement("p"));
            word.className = kind;
            word.textContent = "word";
            return (paper + 0.05) / (light(rgb(getComputedStyle(word).color)) + 0.05);
          }));
        }"""
    )
    assert weakest >= 4.5, weakest
