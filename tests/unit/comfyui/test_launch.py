"""The service started from the sidebar: what is started, by whom, and what is left alone. The program that is started
here is a small one in ComfyLoop's place; `tests/integration/comfyui` starts the service itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from comfyui.launch import RECORD, Launcher, LaunchError, from_own_page

HERE = "http://127.0.0.1:8265"
PROGRAM = """
import os, sys, time
print("started", *sys.argv[1:], os.environ.get("PYTHONHOME"), os.getcwd(), flush=True)
print("星", flush=True)
time.sleep(0 if os.environ.get("AND_ENDS") else 60)
sys.exit(7)
"""


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not check():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    (tmp_path / "comfyloop").mkdir()
    (tmp_path / "comfyloop" / "__init__.py").touch()
    (tmp_path / "comfyloop" / "__main__.py").write_text(PROGRAM, "utf-8")
    file = tmp_path / RECORD
    home = tmp_path / "a home, 家"
    file.write_text(json.dumps({"python": sys.executable, "path": str(tmp_path), "home": str(home)}), "utf-8")
    return file


@pytest.fixture
def launcher(record: Path, tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path / "pack", lambda: [tmp_path / "nowhere", record])
    yield launcher
    if launcher.state(HERE)["running"]:
        launcher.stop()


def test_it_starts_what_was_recorded_where_the_pack_looks_for_it(
    launcher: Launcher, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "that of ComfyUI's Python")
    assert launcher.state(HERE) == {"why_not": "", "running": False, "ended": None}
    launcher.start(HERE)
    until(lambda: "星" in launcher.log())
    home = record.parent / "a home, 家"
    options = f"up --host 127.0.0.1 --port 8265 --home {home}"
    assert launcher.log().splitlines()[0] == f"started {options} None {home}"
    assert launcher.state(HERE)["running"]
    launcher.stop()
    assert launcher.state(HERE)["running"] is False
    with pytest.raises(LaunchError, match="was not started here"):
        launcher.stop()


def test_two_clicks_start_one_and_another_comfyui_finds_and_ends_it(
    launcher: Launcher, record: Path, tmp_path: Path
) -> None:
    launcher.start(HERE)
    first = json.loads((tmp_path / "pack" / "service.json").read_text())["pid"]
    launcher.start(HERE)
    again = Launcher(tmp_path / "pack", lambda: [record])  # ComfyUI, started anew
    again.start(HERE)
    assert json.loads((tmp_path / "pack" / "service.json").read_text())["pid"] == first
    assert psutil.Process(first).is_running() and os.getsid(first) == first
    again.stop()
    assert not launcher.state(HERE)["running"]


def test_how_it_ended_is_told_with_its_log(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AND_ENDS", "1")
    launcher.start(HERE)
    until(lambda: not launcher.state(HERE)["running"])
    assert launcher.state(HERE)["ended"] == 7 and launcher.log().startswith("started")
    launcher.start(HERE)  # and may be started again: the log is that of the last start
    until(lambda: launcher.state(HERE)["ended"] == 7)
    assert launcher.log().count("started") == 1


def test_a_number_that_another_program_has_by_now_is_left_alone(launcher: Launcher, tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        launcher.start(HERE)
        memory = tmp_path / "pack" / "service.json"
        told = json.loads(memory.read_text())
        launcher.stop()
        memory.write_text(json.dumps({**told, "pid": other.pid}))
        with pytest.raises(LaunchError, match="was not started here"):
            launcher.stop()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://192.168.1.20:8265", "not on this machine"),
        ("https://127.0.0.1:8265", "not on this machine"),
        ("http://localhost", "not on this machine"),
        ("http://127.0.0.1.evil.example:8265", "not on this machine"),
    ],
)
def test_what_is_elsewhere_is_not_started(launcher: Launcher, url: str, said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        launcher.start(url)
    assert said in launcher.state(url)["why_not"]


def test_why_it_cannot_be_started_is_said_with_the_mend(launcher: Launcher, record: Path) -> None:
    record.write_text(json.dumps({"python": "/gone/python", "path": "", "home": "/x"}))
    assert "/gone/python, which is gone. Run `comfyloop comfyui link" in launcher.state(HERE)["why_not"]
    record.write_text("[]")
    assert "cannot be read. Run" in launcher.state(HERE)["why_not"]
    record.unlink()
    assert "It is not known where ComfyLoop is installed. Run" in launcher.state(HERE)["why_not"]


@pytest.mark.parametrize(
    ("host", "headers", "taken"),
    [
        ("127.0.0.1:8188", {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8188"}, True),
        ("studio.example", {"Sec-Fetch-Site": "same-origin"}, True),  # over TLS: no other site has its name
        ("127.0.0.1:8188", {"Sec-Fetch-Site": "cross-site"}, False),
        ("127.0.0.1:8188", {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:8000"}, False),
        ("192.168.1.20:8188", {"Origin": "http://192.168.1.20:8188"}, True),
        ("[fd00::1]:8188", {"Origin": "http://[fd00::1]:8188"}, True),
        ("workstation:8188", {"Origin": "http://workstation:8188"}, True),
        ("192.168.1.20:8188", {"Origin": "http://evil.example"}, False),
        ("192.168.1.20:8188", {"Origin": "null"}, False),
        ("evil.example:8188", {"Origin": "http://evil.example:8188"}, False),  # bound anew to this machine
        ("evil.example:8188", {}, False),
        ("127.0.0.1:8188", {}, True),  # no browser
    ],
)
def test_another_web_page_starts_nothing(host: str, headers: dict[str, str], taken: bool) -> None:
    assert from_own_page(host, headers) is taken
