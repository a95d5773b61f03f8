"""The service itself, started by the pack's route in a process that stands for ComfyUI and is then killed; and a
process that stands for ComfyUI, started beside the service."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from comfyloop import __version__
from comfyloop.comfyui import link, unlink
from tests.conftest import REPOSITORY

HOST = """
import asyncio, sys
from pathlib import Path
from aiohttp import web
from comfyui import routes
from comfyui.host import Host
from comfyui.launch import RECORD
from comfyui.pack import Pack

folder = Path(sys.argv[1])
host = Host(lambda _: None, lambda _: False, lambda: False, lambda _: None, lambda _c, _i: "value")
pack = Pack(folder / "user" / "comfyloop", host, lambda *_: None, lambda: [folder / "custom_nodes" / RECORD])
table = web.RouteTableDef()
routes.add(table, pack)
pack.start()

async def serve():
    app = web.Application()
    app.add_routes(table)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[2])).start()
    await asyncio.Event().wait()

asyncio.run(serve())
"""


def until(check: Callable[[], Any], what: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + 240
    while not check():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).json()["version"] == __version__
    except httpx.HTTPError:
        return False


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    folder = tmp_path / "Comfy UI, 画"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the service is told beside: no engine of its own."""
    monkeypatch.setenv("COMFYLOOP_ENGINE", "url")
    monkeypatch.setenv("COMFYLOOP_ENGINE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]))


@pytest.fixture
def page(
    comfyui: Path, tmp_path: Path
) -> Iterator[Callable[[], tuple[subprocess.Popen[bytes], httpx.Client]]]:
    """Starts what stands for ComfyUI; its routes."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[subprocess.Popen[bytes], httpx.Client]:
        port = free_port()
        command = [sys.executable, "-c", HOST, str(comfyui), str(port)]
        started.append(subprocess.Popen(command, start_new_session=True))
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}/comfyloop", trust_env=False, timeout=300)

        def here() -> bool:
            try:
                return client.get("/state").is_success
            except httpx.HTTPError:
                return False

        until(here)
        return started[-1], client

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_start_in_the_sidebar_starts_a_service_that_outlives_comfyui(
    comfyui: Path, page: Callable[[], tuple[subprocess.Popen[bytes], httpx.Client]], tmp_path: Path
) -> None:
    home, url = tmp_path / "home, 家", f"http://127.0.0.1:{free_port()}"
    link(comfyui, home=home)
    settings = comfyui / "user" / "comfyloop" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"url": url}))
    process, first = page()
    state = first.get("/state").json()
    assert state["service"] == {"why_not": "", "running": False, "ended": None} and not state["connected"]

    foreign = first.post("/service/start", json={}, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403 and "ComfyUI's own page" in foreign.json()["error"]
    assert first.post("/service/start", content=b"{}").status_code == 403  # as a form of another site would
    assert not first.get("/state").json()["service"]["running"]

    assert first.post("/service/start", json={"python": "/bin/false"}).json()["service"]["running"]
    until(lambda: answers(url), lambda: first.get("/service/log").json()["text"])
    until(lambda: first.get("/state").json()["connected"])
    assert f"on {url}" in first.get("/service/log").json()["text"] and (home / "service.lock").exists()
    assert "runs already" in first.post("/service/start", json={}).json()["error"]

    os.killpg(process.pid, signal.SIGKILL)  # ComfyUI, and whatever is in its session
    process.wait()
    assert answers(url)
    _, again = page()
    assert again.get("/state").json()["service"]["running"]
    assert not again.post("/service/stop", json={}).json()["service"]["running"]
    assert not answers(url)
    assert unlink(comfyui)
    assert "not known where ComfyLoop is installed" in again.post("/service/start", json={}).json()["error"]


STAND_IN = """
import json, os, sys, time
from pathlib import Path
import comfy.here  # beside main.py
told = {"url": os.environ["COMFYLOOP_URL"], "arguments": sys.argv[1:], "pid": os.getpid(), "cwd": os.getcwd()}
Path("told.new").write_text(json.dumps(told))
os.replace("told.new", "told.json")
time.sleep(600)
"""


def test_comfyui_beside_the_service_ends_with_it(comfyui: Path, tmp_path: Path) -> None:
    (comfyui / "main.py").write_text(STAND_IN)
    (comfyui / "comfy" / "here.py").touch()
    command = [sys.executable, "-m", "comfyloop", "up", "--port", "0", "--home", str(tmp_path / "home")]
    command += [
        "--with-comfyui",
        str(comfyui),
        "--comfyui-python",
        sys.executable,
        "--log",
        str(tmp_path / "log"),
    ]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert told.returncode == 2 and told.stdout + told.stderr == ""
    assert f"comfyloop comfyui link {comfyui}" in (tmp_path / "log").read_text("utf-8")
    link(comfyui)

    service = subprocess.Popen([*command, "--", "--lowvram"], start_new_session=True)
    try:
        until((comfyui / "told.json").exists, lambda: (tmp_path / "log").read_text("utf-8"))
        said = json.loads((comfyui / "told.json").read_text())
        assert answers(said["url"]) and said["arguments"] == ["--lowvram"] and said["cwd"] == str(comfyui)
        beside = psutil.Process(said["pid"])
        service.terminate()
        assert service.wait(200) == 0
        assert not beside.is_running()
    finally:
        service.kill()
        service.wait()
