"""The walks of CONTRIBUTING.md, followed: what they add is found everywhere, and each area passes its tests with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

AREAS = (
    "tests/unit/curate/test_curate_filters.py",
    "tests/unit/train/test_recipes.py",
    "tests/unit/gate/test_gate_metrics.py",
    "tests/unit/serve/test_serve_kinds.py",
    "tests/unit/comfyui/test_package.py",
    "tests/unit/test_modalities.py",
)
"""Tests that go through all declarations of a kind."""
LARGE = 2**18
ASKED = """
import runpy, sys
from pathlib import Path
from comfyloop import formats
from comfyloop.curate import filters
from comfyloop.curate.measurements import Measurements
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.formats import Item, UnusableRow
from comfyloop.gate.metrics import of_answers
from comfyloop.records import Message
from comfyloop.serve.api.chat_request import ChatRequest
from comfyloop.settings import Settings
from comfyloop.wire import wire_message

def draft(id, answer):
    messages = (Message.of("user", "What is it?"), Message.of("assistant", answer))
    return Draft(make("sft", messages, Source("acme", (id,), "answer_edited", "ada")))

class Stored:
    exists = is_whole = read = lambda sha: None

settings = Settings(recipe="gentle", engine="aphrodite")
found = filters.apply([draft("a", "A CAT SITS ON A MAT."), draft("b", "A cat.")], Ground(settings, Stored))
assert [(d.feedback, d.reason) for d in found.dropped] == [("a", "shouting")], found
lenient = settings.model_copy(update={"filters": {"shouting": {"on": False}}})
assert not filters.apply([draft("a", "A CAT SITS ON A MAT.")], Ground(lenient, Stored)).dropped
assert of_answers(("a dog", "a cat"), "A cat")["words_kept"] == (0.5, 1.0)

part = {"type": "series", "numbers": [1, 2.5]}
said = [{"type": "text", "text": "What comes next?"}, part]
text = "What comes next?\\n1, 2.5\\n"
row = {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "4"}]}
assert formats.row_of(Item(1, "", row), Path()).turns[0].text == text
bad = {"messages": [{"role": "user", "content": [part | {"numbers": []}]}, row["messages"][1]]}
try:
    formats.row_of(Item(1, "", bad), Path())
except UnusableRow as error:
    assert "a part of the type 'series'" in str(error)
else:
    raise AssertionError("an empty series was taken")
asked = Message.model_validate({"role": "user", "content": said})
assert Message.model_validate_json(asked.model_dump_json()) == asked and asked.text == text
assert asked.preview == "What comes next? [2 numbers from 1 to 2.5]"
assert wire_message(asked, str) == {"role": "user", "content": text}
ChatRequest.model_validate({"model": "acme", "messages": [{"role": "user", "content": said}]})

pages = runpy.run_path("docs/make_reference.py")["PAGES"]
added = {"filters": "shouting", "recipes": "gentle", "metrics": "words_kept", "engines": "aphrodite"}
added["modalities"] = "series"
for page, name in added.items():
    assert f"| `{name}` |" in pages[f"{page}.md"](), page
assert "gentle" in pages["settings.md"]() and "aphrodite" in pages["settings.md"]()
assert "`gentle`" in pages["training-spec.md"]()
assert not {"torch", "transformers"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which all walks have been followed."""
    copy = tmp_path_factory.mktemp("walked")

    def place(source: str, target: str) -> None:
        if Path(source).stat().st_size > LARGE:
            Path(target).symlink_to(source)  # weights
        else:
            shutil.copy(source, target)

    for name in ("src", "comfyui", "tests/unit", "docs"):
        shutil.copytree(
            REPOSITORY / name,
            copy / name,
            copy_function=place,
            ignore=shutil.ignore_patterns("__pycache__", "images"),
        )
    for name in ("pyproject.toml", "tests/conftest.py", "tests/__init__.py"):
        shutil.copy(REPOSITORY / name, copy / name)
    for language, text in blocks():
        if language == "json":
            told = json.loads(text)
            into = copy / told.pop("into")
            into.write_text(
                json.dumps(json.loads(into.read_text("utf-8")) | told, ensure_ascii=False), encoding="utf-8"
            )
        else:
            name = text.partition("\n")[0].removeprefix("# ")
            assert not (copy / name).exists(), f"{name} is there already"
            (copy / name).write_text(text.partition("\n")[2], encoding="utf-8")
    return copy


def blocks() -> list[tuple[str, str]]:
    guide = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    return re.findall(r"```(python|json)\n(.*?)```", guide, flags=re.DOTALL)


def python(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]


def test_what_was_added_does_what_it_says_and_is_in_the_reference_without_torch(walked: Path) -> None:
    python(walked, "-c", ASKED)


def test_everything_that_goes_through_declarations_passes_with_one_more_of_each(walked: Path) -> None:
    python(
        walked, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--basetemp={walked / 'tmp'}", *AREAS
    )


def test_every_walk_is_there() -> None:
    guide = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    walks = {"filter", "recipe", "metric of the gate", "modality", "engine", "node"}
    assert set(re.findall(r"^## Add an? (.*)$", guide, flags=re.MULTILINE)) == walks
