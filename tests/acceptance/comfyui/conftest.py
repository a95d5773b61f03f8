"""A real ComfyUI, started from COMFYUI_DIR with COMFYUI_PYTHON, with our pack in it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comfyloop.comfyui import pack_folder
from tests.acceptance.comfyui.browser import BROWSER, READY
from tests.acceptance.conftest import RunningService, wait_for

HERE = Path(__file__).parent
TOKEN = "right"
NOBODY = "http://127.0.0.1:9"
"""Where no service answers."""


class RunningComfyUI:
    """`main.py --cpu` over a base directory of its own, so that the checkout stays as it is."""

    def __init__(self, base: Path, **environment: str) -> None:
        self.base, self.log = base, base / "comfyui.log"
        self.directory, self.python = Path(os.environ["COMFYUI_DIR"]), os.environ["COMFYUI_PYTHON"]
        for name in (
            "custom_nodes",
            "input",
            "output",
            "temp",
            "models/loras",
            "models/checkpoints",
            "user/default",
        ):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "comfyloop").symlink_to(pack_folder())
        shutil.copy(HERE / "painter.py", base / "custom_nodes")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.environment = os.environ | {"PYTHONPATH": os.environ.get("COMFYUI_PYTHONPATH", "")}
        self.environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | environment
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *options: str) -> None:
        command = [
            self.python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch",
            "--disable-api-nodes", "--base-directory", str(self.base), *options,
        ]  # fmt: skip
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=self.directory, env=self.environment, stdout=output, stderr=output
            )
        wait_for(self._answers, 240, lambda: self.log.read_text(errors="replace")[-3000:])

    def _answers(self) -> bool:
        try:
            self.call("/comfyloop/state")
        except (OSError, ValueError):
            return False
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def refused(self, path: str, body: dict[str, Any]) -> str:
        """The sentence of a call that must fail."""
        with pytest.raises(urllib.error.HTTPError) as error:
            self.call(path, body)
        return str(json.load(error.value)["error"])

    def queue(self, graph: dict[str, Any], workflow: str = "w") -> str:
        extra = {"extra_pnginfo": {"workflow": {"id": workflow}}}
        answer = self.call("/prompt", {"prompt": graph, "extra_data": extra})
        assert not answer["node_errors"], answer
        return str(answer["prompt_id"])

    def ended(self, prompt_id: str) -> dict[str, Any]:
        """Its history entry, once it has ended."""
        found: dict[str, Any] = {}

        def look() -> bool:
            found.update(self.call(f"/history/{prompt_id}"))
            return prompt_id in found

        wait_for(look, 240, lambda: self.log.read_text(errors="replace")[-3000:])
        return dict(found[prompt_id])

    def run(self, graph: dict[str, Any], workflow: str = "w") -> dict[str, Any]:
        entry = self.ended(self.queue(graph, workflow))
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry

    def pause(self, event: str) -> dict[str, Any]:
        """What the node that waits shows."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [p for p in self.call("/comfyloop/state")["pauses"] if p["event"] == event]
            return bool(found)

        wait_for(look, 240, lambda: self.log.read_text(errors="replace")[-3000:])
        return found[0]

    def waiting(self) -> int:
        return int(self.call("/comfyloop/state")["waiting"])


def connect(comfyui: RunningComfyUI, service: RunningService, **settings: Any) -> None:
    comfyui.call("/comfyloop/settings", {"url": service.client.url, "token": TOKEN, **settings})
    wait_for(
        lambda: comfyui.call("/comfyloop/state")["connected"],
        20,
        lambda: str(comfyui.call("/comfyloop/state")),
    )


@pytest.fixture
def service(make_service: Callable[..., RunningService], tiny_vlm: Path) -> RunningService:
    service = make_service(project="acme", model=tiny_vlm, trigger_samples=1_000_000, token=TOKEN)
    service.start()
    service.wait_ready()
    return service


@pytest.fixture
def comfyui(tmp_path: Path) -> Iterator[RunningComfyUI]:
    missing = [name for name in ("COMFYUI_DIR", "COMFYUI_PYTHON") if not os.environ.get(name)]
    if missing:
        pytest.skip(
            f"NOT PROVED: {' and '.join(missing)} not set, so the node pack was not tried in a real ComfyUI"
        )
    running = RunningComfyUI(tmp_path / "comfyui", COMFYLOOP_PROJECT="acme", COMFYLOOP_URL=NOBODY)
    yield running
    running.stop()


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
        page = browser.new_context(viewport={"width": 1500, "height": 900}).new_page()
        page.name = request.param
        page.goto(comfyui.url)
        page.wait_for_function(READY, timeout=90_000)
        page.wait_for_timeout(3000)  # the page goes on configuring itself after it is usable
        page.keyboard.press("Escape")
        yield page
        browser.close()
