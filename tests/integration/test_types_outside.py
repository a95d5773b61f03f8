"""A program of another project, checked strictly by mypy, sees what the package is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import comfyloop
from tests.conftest import REPOSITORY

OUTSIDE = """\
import comfyloop
from comfyloop.records import Generation


async def look(client: comfyloop.AsyncClient) -> list[Generation]:
    answer = await client.ask("What is this?", model="acme")
    reveal_type(answer.text)
    reveal_type(await client.versions())
    async for run in client.pages("/v1/runs", limit=3):
        reveal_type(run)
    return [await client.generation(answer.generation)]


def wait(client: comfyloop.Client) -> str:
    reveal_type(client.forget(author="x").versions)
    return client.ask("What is this?").text


def wrong(client: comfyloop.Client) -> str:
    client.ask("What is this?", modle="acme")  # wrong
    client.generation(3)  # wrong
    comfyloop.Clients  # wrong
    return client.loop()  # wrong
"""


def test_a_project_outside_sees_the_types_of_it(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(OUTSIDE)
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--cache-dir",
            REPOSITORY / ".mypy_cache" / "outside",
            "outside.py",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(comfyloop.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    told = checked.stdout
    for shown in (
        '"str"',
        '"tuple[int, list[comfyloop.records.versions.Version]]"',
        '"dict[str, Any]"',
        '"tuple[int, ...]"',
    ):
        assert f"Revealed type is {shown}" in told.replace("builtins.", ""), told + checked.stderr
    wrong = {int(line.split(":")[1]) for line in told.splitlines() if ": error: " in line}
    assert wrong == {
        number for number, line in enumerate(OUTSIDE.splitlines(), 1) if line.endswith("# wrong")
    }, told
