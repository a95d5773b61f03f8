"""The code that the documentation shows runs: Python, shell, requests, each against a real service."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from websockets.sync.client import connect

from comfyloop.cli import app
from comfyloop.curate import filters
from comfyloop.records import AnswerEdited
from comfyloop.settings import Settings
from tests.acceptance.conftest import RunningService
from tests.conftest import REPOSITORY

URL = "http://127.0.0.1:8265"
PAGES = [
    "README.md",
    "comfyui/README.md",
    *(f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md")),
]
PICTURE = REPOSITORY / "tests" / "integration" / "chelsea.jpg"
ROW = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Aloha!"}]}

NEEDS_MORE = {
    "demo": "tests/acceptance/test_brand_demo.py runs it",
    "up": "it is what these run against",
    "comfyui": "tests/acceptance/comfyui runs them",
    "autostart": "it changes what runs at log-in here: tests/unit/test_autostart.py",
    "engines": "it fetches 2 GB",
    "train": "tests/integration/train runs them",
    "data": "tests/unit/datasets runs them, hubs on loopback among them",
    "queue": "tests/unit/serve/test_serve_queue.py decides about items that there are",
    "evaluate": "a version, which nobody has trained here: tests/unit/serve/test_serve_bundles.py",
    **dict.fromkeys(
        ("bundle", "push", "pull", "index", "browse", "adopt"),
        "tests/acceptance/test_sharing.py and tests/unit/registry run them",
    ),
}
"""Commands that are looked at, and not run here. Without arguments, `train` is a turn of the loop: that one is run."""


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of a page."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """Words of every `comfyloop …` line."""
    found = []
    for language, code in blocks(page):
        if language in ("sh", "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words and words[0] == "comfyloop":
                    found.append(words[1:])
    return found


SHOWN = [(page, words) for page in PAGES for words in commands(page)]


def test_pages_show_only_what_is_looked_at_here() -> None:
    languages = {language for page in PAGES for language, _ in blocks(page)}
    assert languages == {"python", "sh", "bash", "json", "toml", ""}  # "": the map of the code, and torchrun
    assert len(SHOWN) > 25


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages name: a picture, a folder of them, and rows."""
    shutil.copy(PICTURE, tmp_path / "cat.jpg")
    (tmp_path / "photos").mkdir()
    shutil.copy(PICTURE, tmp_path / "photos" / "cat.jpg")
    (tmp_path / "samples.jsonl").write_text(json.dumps(ROW) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "shown", [code for page in PAGES for language, code in blocks(page) if language == "toml"]
)
def test_settings_that_are_shown_are_some(
    shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYLOOP_HOME", str(tmp_path))
    (tmp_path / "comfyloop.toml").write_text(shown, encoding="utf-8")
    filters.options_of(Settings())


@pytest.mark.parametrize(
    ("page", "words"), SHOWN, ids=lambda found: found if isinstance(found, str) else None
)
def test_every_command_that_is_shown_is_one(page: str, words: list[str], folder: Path) -> None:
    """Its names, options and number of arguments: parsed as the command line does, and not carried out."""
    command: Any = typer.main.get_command(app)
    context, rest = command.make_context("comfyloop", list(words)), words
    while hasattr(command, "commands") and rest:  # some groups do something by themselves
        _, command, rest = command.resolve_command(context, rest)
        assert command is not None, words
        context = command.make_context(command.name, list(rest), parent=context)


@pytest.fixture(scope="module")
def service(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    home = tmp_path_factory.mktemp("docs") / "home"
    running = RunningService(
        home, project="default", model=tiny_vlm, trigger_samples=1_000_000, dtype="float32", engine_threads=1,
        train_threads=1, warm_trainer=False, replay_share=0, max_steps=1,
    )  # fmt: skip
    running.start()
    running.wait_ready()
    yield running
    running.stop()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(b[0] == "python" for b in blocks(page))])
def test_python(page: str, service: RunningService, folder: Path) -> None:
    """A page's blocks are one program."""
    code = "\n".join(code for language, code in blocks(page) if language == "python")
    assert URL in code
    (folder / "shown.py").write_text(code.replace(URL, service.client.url), encoding="utf-8")
    ran = subprocess.run([sys.executable, "shown.py"], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr + service.what_happened()


@pytest.mark.slow
def test_shell(service: RunningService, folder: Path) -> None:
    """Every command, in the order of the pages; then the request that the README sends."""
    client = service.client
    answer = client.ask("Hello!", max_tokens=8)
    edit = AnswerEdited(project="default", generation=answer.generation, edited="Aloha!")
    client.send_feedback([edit])
    client.preferences("ends", "End with the brand's name.")  # one of the examples in docs/examples.md
    port = client.url.rpartition(":")[2]
    environment = os.environ | {"COMFYLOOP_HOME": str(service.home), "COMFYLOOP_PORT": port}
    ran = []
    for _, words in SHOWN:
        if words[0] in NEEDS_MORE and words != ["train"]:
            continue
        if words[0] == "export" and "--to" in words:
            continue  # a version, which nobody has trained here: tests/unit/serve/test_serve_bundles.py does
        if words[:2] == ["snapshot", "diff"]:
            continue  # against an earlier one: tests/integration/curate/test_curate_build.py
        if words[:2] == ["feedback", "answer"]:
            continue  # a question that nobody asks here: tests/unit/serve/test_serve_flags.py answers one
        sent = [edit.id if word == "ID" else word for word in words]
        done = subprocess.run(
            [sys.executable, "-m", "comfyloop", *sent],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        # 1 is an answer, too: a finding of the doctor's, a turn that did not promote
        assert done.returncode in ((0, 1) if words[0] in ("doctor", "train") else (0,)), (words, done.stderr)
        ran.append(words[0])
    assert {
        "ask",
        "status",
        "preferences",
        "feedback",
        "train",
        "versions",
        "runs",
        "snapshot",
        "doctor",
        "plan",
    } == set(ran)
    (request,) = [code for language, code in blocks("README.md") if code.startswith("curl")]
    if shutil.which("curl") is None:
        pytest.skip("NOT PROVED: curl is not installed, so the README's request was not sent")
    sent_by_curl = request.replace(URL, client.url).replace("gen_…", answer.generation)
    curl = subprocess.run(
        ["bash", "-c", sent_by_curl.replace("curl", "curl -sS --noproxy '*'")], capture_output=True
    )
    assert json.loads(curl.stdout)["stored"], curl


@pytest.mark.slow
def test_messages_of_the_chat_socket(service: RunningService) -> None:
    ((code),) = [code for language, code in blocks("docs/serve.md") if language == "json"]
    first, second = code.splitlines()
    with connect(f"ws://{service.client.url.removeprefix('http://')}/v1/chat/completions") as socket:
        socket.send(first.replace('"acme"', '"default"'))
        socket.send(second)
        while (told := json.loads(socket.recv(timeout=60)))["type"] not in ("done", "error", "cancelled"):
            pass
    assert told["request_id"] == "a" and told["type"] != "error", told
