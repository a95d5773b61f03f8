"""The command line against a service: which project a command is about."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


def test_a_settings_file_says_it_too(
    two: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("here")
    (folder / "comfyloop.toml").write_text('project = "x"\n')
    monkeypatch.chdir(folder)
    assert told(two, "status")["loop"]["project"] == "x"
