"""What the registry and ComfyUI ask of the pack's files."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyloop import __version__
from comfyloop.comfyui import pack_folder
from comfyloop.curate import samples
from comfyloop.starter.image import checkpoint_path, denoiser
from comfyui import feedback
from comfyui.service import VERSION

PACK = pack_folder()
FROM_SERVICE = {"idle", "curating", "training", "gating", "promoting"}
FROM_SERVICE |= {"log_likelihood", "edit_distance", "all", "vision", "general", "prompt", "graph"}
FROM_SERVICE |= {"wants", "does not want", "wanted", "now wants", "running", "worse", "no_worse", "ended"}
FROM_SERVICE |= {"right_answer", "general picture", "accepted"}
FROM_SERVICE |= {"live", "candidate", "retired", "rejected", "withdrawn"}
FROM_SERVICE |= {"answer_edited", "answer_accepted", "answer_rated", "image_picked", "image_rated"}
FROM_SERVICE |= {"prompt_edited", "graph_edited", "sample_uploaded", "sample_reviewed"}
NODES = [file for file in sorted((PACK / "nodes").glob("*.py")) if file.stem not in ("__init__", "shared")]
STARTS_PROGRAMS = ("launch.py", "platforms.py")
"""For the service alone, when a person says so: the registry wants nothing installed from within."""
MODULES = sorted(PACK.rglob("*.py"))


@pytest.mark.parametrize("language", [folder.name for folder in sorted((PACK / "locales").iterdir())])
def test_another_language_names_what_the_nodes_declare(language: str) -> None:
    """English is what the nodes say of themselves, which ComfyUI shows where a language has no word for it."""
    told = json.loads((PACK / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    assert told.keys() == {_schema(module)[0] for module in NODES}
    for module in NODES:
        named = told[_schema(module)[0]]
        assert named["display_name"].endswith(" (ComfyLoop)") and named["description"]
        inputs, outputs = _declared(module)
        assert {key: "tooltip" in word for key, word in named["inputs"].items()} == inputs, module.stem
        assert list(named["outputs"]) == [str(place) for place in range(outputs)], module.stem


def _declared(module: Path) -> tuple[dict[str, bool], int]:
    """The inputs of a node and whether each has a tooltip, those of `shared` among them; how many outputs."""
    shared = ast.parse((PACK / "nodes" / "shared.py").read_text("utf-8"))
    given = {part.name: part for part in shared.body if isinstance(part, ast.FunctionDef)}
    tree = ast.parse(module.read_text("utf-8"))
    used = [
        given[call.func.id]
        for call in _calls(tree)
        if isinstance(call.func, ast.Name) and call.func.id in given
    ]
    calls = [call for part in (tree, *used) for call in _calls(part)]
    inputs = {
        ast.literal_eval(call.args[0]): any(word.arg == "tooltip" for word in call.keywords)
        for call in calls
        if ast.unparse(call.func).endswith(".Input")
    }
    return inputs, sum(ast.unparse(call.func).endswith(".Output") for call in calls)


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("module", NODES, ids=lambda path: path.stem)
def test_a_node_declares_itself_in_its_file(module: Path) -> None:
    name, shown = _schema(module)
    last = ast.parse(module.read_text("utf-8")).body[-1]
    assert isinstance(last, ast.Assign) and ast.unparse(last).startswith("NODE = ")
    assert name.startswith("ComfyLoop") and shown.endswith(" (ComfyLoop)")


def _schema(module: Path) -> tuple[str, str]:
    """A node's id and what it is called, as its file says: ComfyUI, which would read it, is not here."""
    calls = [node for node in ast.walk(ast.parse(module.read_text("utf-8"))) if isinstance(node, ast.Call)]
    (schema,) = (call for call in calls if ast.unparse(call.func) == "io.Schema")
    told = {
        word.arg: ast.literal_eval(word.value)
        for word in schema.keywords
        if word.arg in ("node_id", "display_name")
    }
    return told["node_id"], told["display_name"]


def test_every_word_of_the_page_has_a_translation_and_every_translation_a_use() -> None:
    words = dict(re.findall(r'"([^"]+)": "([^"]+)"', (PACK / "web" / "words.js").read_text("utf-8")))
    pages = "".join(file.read_text("utf-8") for file in (PACK / "web").glob("*.js") if file.stem != "words")
    used = set(re.findall(r'\b(?:t|button|iconButton)\((?:"pi-[^"]+", )?"([^"]+)"', pages))
    for pair in re.findall(r'\bt\([^"()]*\? "([^"]+)" : "([^"]+)"\)', pages):
        used |= set(pair)
    assert len(used) > 20 and used <= words.keys()
    assert all(f'"{word}"' in pages or word in FROM_SERVICE for word in words)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACK)))
def test_the_registry_rules_are_kept(module: Path) -> None:
    tree = ast.parse(module.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile")
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            absolute = not isinstance(node, ast.ImportFrom) or node.level == 0
            for name in names if absolute else []:
                assert name.split(".")[0] not in ("comfyloop", "pip", "requests", "pydantic")
                assert name != "subprocess" or module.name in STARTS_PROGRAMS


def test_the_metadata_is_complete_and_does_not_load_the_page_twice() -> None:
    project = tomllib.loads((PACK / "pyproject.toml").read_text("utf-8"))
    assert {"name", "version", "description", "license"} <= project["project"].keys()
    assert {"PublisherId", "DisplayName", "Icon", "requires-comfyui"} <= project["tool"]["comfy"].keys()
    assert {"Repository", "Documentation", "Bug Tracker"} <= project["project"]["urls"].keys()
    assert "web" not in project["tool"]["comfy"] and project["project"]["dependencies"] == []


def test_pack_and_service_are_of_one_version_and_ask_in_the_same_words() -> None:
    project = tomllib.loads((PACK / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["version"] == VERSION == __version__
    assert feedback.WRITE_PROMPT == samples.WRITE_PROMPT


@pytest.mark.parametrize("file", sorted((PACK / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_are_whole(file: Path) -> None:
    workflow = json.loads(file.read_text("utf-8"))
    ids = {node["id"] for node in workflow["nodes"]}
    assert all(link[1] in ids and link[3] in ids for link in workflow["links"])
    nulls = [name for name in _nulls(workflow) if name != "link"]
    assert nulls == []  # the page's schema takes no null but that of a plug without a link
    values = {node["type"]: node.get("widgets_values") for node in workflow["nodes"]}
    if "CheckpointLoaderSimple" in values:  # ready for what `comfyloop comfyui link --image-model` puts in
        assert values["CheckpointLoaderSimple"] == [checkpoint_path(Path()).name]
        assert values["EmptyLatentImage"][:2] == [denoiser.SIDE, denoiser.SIDE]
        assert values["KSampler"][2:5] == [20, 5, "euler"]
    for asks in values.keys() & {"ComfyLoopAsk", "ComfyLoopWritePrompt"}:
        temperature, tokens, _, after = values[asks][2:]
        assert temperature == 0 and after == "fixed"  # a new seed would ask again, and lose the person's edit
        assert tokens <= 96


def _nulls(value: object) -> Iterator[str]:
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):  # type: ignore[attr-defined]
        if inner is None:
            yield str(name)
        elif isinstance(inner, dict | list):
            yield from _nulls(inner)
