"""A package of files that each declare one thing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from comfyloop.declared import declared


@dataclass(frozen=True)
class Toy:
    name: str


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    __import__("toys")
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


IMPORT = f"from {__name__} import Toy\n"


def test_every_module_is_found_by_its_name_and_helpers_are_not(package: Path) -> None:
    for name in ("drum", "ball"):
        (package / f"{name}.py").write_text(f'{IMPORT}TOY = Toy("{name}")\n')
    (package / "_shared.py").write_text("raise AssertionError\n")
    assert declared("toys", Toy) == {"ball": Toy("ball"), "drum": Toy("drum")}


@pytest.mark.parametrize("text", ["", 'TOY = "ball"\n', 'BALL = Toy("ball")\n'])
def test_a_module_that_declares_nothing_is_named(package: Path, text: str) -> None:
    (package / "ball.py").write_text(IMPORT + text)
    with pytest.raises(TypeError, match=r"toys/ball.py has no TOY = Toy\(...\)"):
        declared("toys", Toy)


def test_file_and_declaration_have_one_name(package: Path) -> None:
    (package / "ball.py").write_text(f'{IMPORT}TOY = Toy("bell")\n')
    with pytest.raises(TypeError, match="declares 'bell'"):
        declared("toys", Toy)
