"""Text of files and of other programs is UTF-8 whatever the locale: Windows' code pages and ISO-8859 ones are not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SOURCES = sorted(
    path
    for folder in ("src/comfyloop", "comfyui")
    for path in (REPOSITORY / folder).rglob("*.py")
    if ".venv" not in path.parts
)


def without_encoding(tree: ast.AST) -> Iterator[int]:
    """The lines on which text is read or written as the locale has it."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        named = {keyword.arg for keyword in node.keywords}
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = len(node.args)
        if called in ("read_text", "write_text"):
            if "encoding" not in named and given < (1 if called == "read_text" else 2):
                yield node.lineno
        elif (
            called in ("run", "Popen", "check_output")
            and {"text", "universal_newlines"} & named
            and "encoding" not in named
        ):
            yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_text_has_an_encoding(path: Path) -> None:
    assert list(without_encoding(ast.parse(path.read_text("utf-8")))) == []
