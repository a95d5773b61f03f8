"""The documentation is part of the interface: what it must name, it names."""

from __future__ import annotations

import re
import runpy

import pytest
import typer
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.settings import Settings
from tests.conftest import REPOSITORY


def test_the_reference_is_what_make_docs_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    script = runpy.run_path(str(REPOSITORY / "docs" / "make_reference.py"))
    for name, page in script["PAGES"].items():
        assert (script["REFERENCE"] / name).read_text(encoding="utf-8") == page(), f"{name}: run `make docs`"
    assert all(field.description for field in Settings.model_fields.values())


def test_every_command_has_help_and_a_json_form() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name in commands:
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, name
        if not hasattr(commands[name], "commands") and name not in {"up", "version"}:
            assert "--json" in shown.output, name


def test_the_two_readmes_show_the_same_commands() -> None:
    def blocks(name: str) -> list[str]:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        code = re.findall(r"```\w+\n(.*?)```", text, flags=re.DOTALL)
        return [re.sub(r"\s+#.*", "", block) for block in code]

    assert blocks("README.md") == blocks("README.zh-CN.md")
