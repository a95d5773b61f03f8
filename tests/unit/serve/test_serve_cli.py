"""The command line against a service: which project a command is about."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.errors import ComfyLoopError
from comfyloop.records import Project
from comfyloop.settings import Settings
from comfyloop.store import projects
from tests.unit.serve.gateway import Gateway, instant, running_gateway


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A service whose own project is acme, and that has another one, x."""
    settings = Settings(home=tmp_path_factory.mktemp("two"), project="acme", port=0)
    with running_gateway(settings, instant()) as gateway:
        with gateway.store.begin() as conn:
            projects.ensure(conn, Project(name="x", base_model=settings.model))
        yield gateway


def told(gateway: Gateway, *words: str, json_out: bool = True) -> Any:
    flags = ["--url", gateway.url, *(["--json"] if json_out else [])]
    done = CliRunner().invoke(app, [*words, *flags])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.stdout) if json_out else done.stdout


def test_the_setting_project_says_which_one_a_command_is_about(
    two: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(two, "status")["loop"]["project"] == "acme"  # nothing said: the service's own
    monkeypatch.setenv("COMFYLOOP_PROJECT", "x")
    assert told(two, "status")["loop"]["project"] == "x"
    assert "x" in told(two, "status", json_out=False).split()
    assert told(two, "ask", "hi")["version"] == "x@base"
    assert told(two, "train", "--no-wait")["project"] == "x"
    assert told(two, "status", "--project", "acme")["loop"]["project"] == "acme"
    monkeypatch.setenv("COMFYLOOP_PROJECT", "nowhere")
    with pytest.raises(ComfyLoopError, match="no project 'nowhere'"):
        told(two, "status")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1"),
        ("::1", "http://[::1]"),
        ("fe80::1", "http://[fe80::1]"),
        ("::", "http://localhost"),
        ("0.0.0.0", "http://localhost"),
    ],
)
def test_a_command_finds_the_service_whatever_it_listens_on(
    monkeypatch: pytest.MonkeyPatch, host: str, url: str
) -> None:
    monkeypatch.setenv("COMFYLOOP_HOST", host)
    monkeypatch.setenv("COMFYLOOP_PORT", "1")  # where nothing is
    with pytest.raises(ComfyLoopError, match=re.escape(f"No service answers at {url}:1.")):
        CliRunner().invoke(app, ["status"], catch_exceptions=False)


def test_a_name_stays_one_part_of_a_path(two: Gateway) -> None:
    """What follows a `?` or `#` would be no part of it, and another data set would be removed."""
    sent = two.http.post("/v1/datasets", json={"name": "mugs", "source": "upload"})
    id = sent.raise_for_status().json()["id"]
    for words in (
        ["data", "remove", f"{id}?x"],
        ["data", "show", f"{id}#x"],
        ["data", "remove", f"x/../{id}"],
    ):
        with pytest.raises(ComfyLoopError):
            told(two, *words)
    for words in (["runs", "none?x"], ["export", "nowhere", "--snapshot", "none?x"]):
        with pytest.raises(ComfyLoopError, match=r"none\?x"):
            told(two, *words)
    assert told(two, "data", "show", id)["name"] == "mugs"
    two.http.delete(f"/v1/datasets/{id}").raise_for_status()


def test_what_is_no_text_is_said(two: Gateway) -> None:
    with pytest.raises(
        ComfyLoopError, match=r"is no text: it has '\\udce9'"
    ):  # as a file in Latin-1 comes in
        told(two, "ask", "caf\udce9")


def test_a_code_page_that_lacks_a_character_ends_no_command(two: Gateway) -> None:
    """As on Windows, where output goes into a file."""
    words = [sys.executable, "-m", "comfyloop", "ask", "say word for word <<汉字 — é 😀>>", "--url", two.url]
    page = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}
    shown = subprocess.run(words, env=page, capture_output=True)
    assert shown.returncode == 0, shown.stderr.decode()
    assert "\\u6c49\\u5b57 — é \\U0001f600" in shown.stdout.decode("cp1252").replace("\r\n", "")
    as_json = subprocess.run([*words, "--json"], env=page, capture_output=True, check=True)
    assert "汉字 — é 😀" in json.loads(as_json.stdout)["text"]


def test_a_settings_file_says_it_too(
    two: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("here")
    (folder / "comfyloop.toml").write_text('project = "x"\n')
    monkeypatch.chdir(folder)
    assert told(two, "status")["loop"]["project"] == "x"


def test_snapshots_are_made_shown_compared_and_exported(two: Gateway, tmp_path: Path) -> None:
    def edit(number: int, wanted: str) -> None:
        answer = two.ask(text=f"What is mug {number}?").json()["id"]
        item = {"kind": "answer_edited", "project": "acme", "generation": answer, "edited": wanted}
        assert two.http.post("/v1/feedback", json=item).status_code == 201

    def comfyloop(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, "--url", two.url], env={"COLUMNS": "300"})
        assert done.exit_code == 0, done.output
        return done.output

    for number in range(4):
        edit(number, f"It is mug {number}, of clay.")
    first = json.loads(comfyloop("snapshot", "--json"))["id"]
    edit(5, "TODO")
    second = json.loads(comfyloop("snapshot", "--json"))["id"]
    assert second != first
    listed = comfyloop("snapshot", "list")
    assert listed.index(second[:12]) < listed.index(first[:12])
    shown = comfyloop("snapshot", "show", second[:10])
    assert "To be looked at" in shown and "placeholder" in shown and "Made of:" in shown
    assert json.loads(comfyloop("snapshot", "show", "--json"))["report"]["sources"] == {"answer_edited": 10}
    compared = comfyloop("snapshot", "diff")
    assert f"{first[:12]} -> {second[:12]}" in compared and "TODO" in compared
    back = json.loads(comfyloop("snapshot", "diff", second[:12], first[:12], "--json"))
    assert (back["added"], back["removed"]) == (0, 2)
    comfyloop("snapshot", "export", str(tmp_path / "out"), "--format", "sharegpt", "--snapshot", first)
    assert (tmp_path / "out" / "dataset_info.json").is_file()
    missing = CliRunner().invoke(app, ["snapshot", "show", "0" * 10, "--url", two.url])
    assert missing.exit_code != 0
