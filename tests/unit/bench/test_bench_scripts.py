"""Every script of `make bench` starts on a fresh clone: what it imports is there, or it does without and says so."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SCRIPTS = sorted((REPOSITORY / "bench").glob("*.py"))
OWN = {path.name for path in REPOSITORY.iterdir() if path.is_dir()} - {"comfyloop"}
"""Packages of the repository that are not installed with it."""


def imported(code: str) -> Iterator[str]:
    """The packages that a script imports, in its functions too."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_finds_all_that_it_imports(script: Path) -> None:
    code = script.read_text()
    for package in imported(code):
        if package in OWN:
            # `python bench/x.py` looks in bench/, not where it is called
            found = "__main__" not in code or "sys.path.insert(0, str(Path(__file__).parent" in code
            assert found, f"{package} is not found"
        else:
            there = importlib.util.find_spec(package) is not None
            assert there or "except ImportError" in code, f"{package} is not installed with us"


def test_a_package_that_is_missing_would_be_seen() -> None:
    code = "import a.b\ndef f():\n    try:\n        from c.d import e\n    except ImportError:\n        import g\n"
    assert set(imported(code)) == {"a", "c", "g"}


def test_the_bench_calls_services_by_a_name_that_they_answer_to() -> None:
    """`Host: bench` was answered 421 once names were checked, and the gateway's bench ended with it."""
    for script in SCRIPTS:
        hosts = [line for line in script.read_text().splitlines() if "Host: " in line]
        assert all("Host: 127.0.0.1" in line for line in hosts), script.name
