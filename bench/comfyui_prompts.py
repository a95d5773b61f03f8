"""Whether the text of a picture is told rightly, over ComfyUI's own workflow templates.

    pip install comfyui-workflow-templates-json
    python bench/comfyui_prompts.py --object-info http://127.0.0.1:8188     (or a file of that answer)

Each template is brought into API form as ComfyUI's page does it, and of each node that shows or saves pictures the
text is asked. What is right is in `comfyui_prompts.json`, a hash a text and one a template, so that a changed
template is not judged by an old answer. How that list was made: the API forms were compared with those of the page
itself, and a person read each text that is not the longest one in its workflow, each "no text" where there are
texts, and all whose node is titled negative (none); the others are the one prompt of their workflow.

Counted are right, "each of several" (the picture is put together from pictures of several texts, and all of them are
told), "known in a run" (a node writes the text while it runs, and the pack hears it), honestly unknown, and wrong ones:
a wrong one is listed, and ends the script with an error. Templates whose nodes this ComfyUI lacks, and those that are
not in the list, are not judged; the latter are named. `--review` prints what is found; `--accept` writes it down.
The last lines say how much of what has a text is not known, by the workflow alone and after a run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from comfyui.roles import PictureText, text_of_picture

EXPECTED = Path(__file__).parent / "comfyui_prompts.json"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AFTER = {"fixed", "randomize", "increment", "decrement"}
VIRTUAL = {"Note", "MarkdownNote", "PrimitiveNode", "Reroute"}
HEARD = "(what a run hears)"
SHOWS = {"IMAGE", "VIDEO"}
MUTED, BYPASSED = 2, 4
RIGHT, SEVERAL, RUN, UNKNOWN = "right", "right: each of several", "right: known in a run", "unknown"
INPUT_NODE, OUTPUT_NODE = -10, -20


class Page:
    """A template in the page's form: the nodes of its graph and of the subgraphs in it, and what is where linked."""

    def __init__(self, workflow: Mapping[str, Any], classes: Mapping[str, Any]) -> None:
        self.classes = classes
        self.subgraphs = {s["id"]: s for s in (workflow.get("definitions") or {}).get("subgraphs") or ()}
        self.api: dict[str, Any] = {}
        self._emit(Scope(self, workflow, "", None, None))

    def _emit(self, scope: Scope) -> None:
        for node in scope.nodes.values():
            if node.get("mode") in (MUTED, BYPASSED) or node["type"] in VIRTUAL:
                continue
            if node["type"] in self.subgraphs:
                self._emit(scope.inside(node))
                continue
            inputs = dict(_widgets(node, self.classes))
            for place, slot in enumerate(node.get("inputs") or ()):
                source = scope.source(node, place)
                if source is not None:
                    inputs[slot["name"]] = source
            self.api[f"{scope.prefix}{node['id']}"] = {"class_type": node["type"], "inputs": inputs}


class Scope:
    """One graph: the outer one, or a subgraph where it is used."""

    def __init__(
        self, page: Page, graph: Mapping[str, Any], prefix: str, outer: Scope | None, instance: Any
    ) -> None:
        self.page, self.prefix, self.outer, self.instance = page, prefix, outer, instance
        slots = list(graph.get("inputs") or ()) if outer is not None else []
        self.names = [slot["name"] for slot in slots]
        shown = [slot["name"] for slot in slots if slot["type"] in WIDGETS]
        self.values = dict(zip(shown, (instance or {}).get("widgets_values") or (), strict=False))
        self.nodes = {node["id"]: node for node in graph["nodes"]}
        rows = [row if isinstance(row, dict) else _row(row) for row in graph["links"]]
        self.links = {row["id"]: row for row in rows}
        self.incoming = {(row["target_id"], row["target_slot"]): row for row in rows}

    def inside(self, instance: Mapping[str, Any]) -> Scope:
        graph = self.page.subgraphs[instance["type"]]
        return Scope(self.page, graph, f"{self.prefix}{instance['id']}:", self, instance)

    def source(self, node: Mapping[str, Any], place: int) -> Any:
        """What arrives at an input: [node, slot] or a value; None where nothing does."""
        row = self.links.get((node.get("inputs") or ())[place].get("link"))
        return None if row is None else self._origin(row["origin_id"], row["origin_slot"])

    def _origin(self, key: int, slot: int) -> Any:
        if key == INPUT_NODE:
            assert self.outer is not None
            places = {entry["name"]: place for place, entry in enumerate(self.instance.get("inputs") or ())}
            place = places.get(self.names[slot])
            source = None if place is None else self.outer.source(self.instance, place)
            return self.values.get(self.names[slot]) if source is None else source
        node = self.nodes.get(key)
        if node is None or node.get("mode") == MUTED:
            return None
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute":
            return self.source(node, 0)
        if node.get("mode") == BYPASSED:
            return self._through(node, slot)
        if node["type"] in self.page.subgraphs:
            inner = self.inside(node)
            row = inner.incoming.get((OUTPUT_NODE, slot))
            return None if row is None else inner._origin(row["origin_id"], row["origin_slot"])
        return [f"{self.prefix}{key}", slot]

    def _through(self, node: Mapping[str, Any], slot: int) -> Any:
        """A bypassed node gives out what it was given of the same type."""
        inputs, wanted = node.get("inputs") or [], node["outputs"][slot]["type"]
        order = [slot, *range(len(inputs))] if slot < len(inputs) else range(len(inputs))
        return next((self.source(node, place) for place in order if inputs[place]["type"] == wanted), None)


def _row(link: list[Any]) -> dict[str, Any]:
    return dict(
        zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=False)
    )


def _widgets(node: Mapping[str, Any], classes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A node's values by name: they are stored in the order of its definition."""
    stored = node.get("widgets_values")
    if isinstance(stored, dict):
        yield from ((name, value) for name, value in stored.items() if not isinstance(value, dict))
        return
    values = list(stored or ())
    if node["type"] == "CustomCombo" and len(values) > 1:  # whose further widgets the page alone knows
        yield from zip(
            ("choice", "index", *(f"option{n}" for n in range(1, len(values) - 1))), values, strict=True
        )
        return
    yield from _in_order(classes[node["type"]]["input"], values, "")


def _in_order(parts: Mapping[str, Any], values: list[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for part in ("required", "optional"):
        for name, spec in (parts.get(part) or {}).items():
            kind, options = spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            if options.get("forceInput") or not values:
                continue
            if kind == "COMFY_DYNAMICCOMBO_V3":
                key = values.pop(0)
                yield prefix + name, key
                chosen = next((o for o in options["options"] if o["key"] == key), None)
                if chosen is not None:
                    yield from _in_order(chosen["inputs"], values, f"{prefix}{name}.")
            elif isinstance(kind, list) or kind in WIDGETS:
                yield prefix + name, values.pop(0)
                if values and isinstance(values[0], str) and values[0] in AFTER:
                    values.pop(0)
                if (
                    any(option.endswith("_upload") for option in options)
                    and values
                    and values[0] in ("image", "video")
                ):
                    values.pop(0)


def lacking(workflow: Mapping[str, Any], classes: Mapping[str, Any]) -> set[str]:
    """The classes of a template that the asked ComfyUI does not have: it cannot run there, nor be brought in form."""
    subgraphs = (workflow.get("definitions") or {}).get("subgraphs") or ()
    used = {node["type"] for graph in (workflow, *subgraphs) for node in graph["nodes"]}
    return used - classes.keys() - VIRTUAL - {subgraph["id"] for subgraph in subgraphs}


def pictures(api: Mapping[str, Any], classes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The nodes that show or save pictures, and where these arrive."""
    for key, node in api.items():
        definition = classes.get(node["class_type"], {})
        if not definition.get("output_node", not definition.get("output")):
            continue
        for name, value in node["inputs"].items():
            if isinstance(value, list) and len(value) == 2 and value[0] in api:
                outputs = classes.get(api[value[0]]["class_type"], {}).get("output") or ()
                if value[1] < len(outputs) and outputs[value[1]] in SHOWS:
                    yield key, name


def texts(workflow: Mapping[str, Any], classes: Mapping[str, Any]) -> dict[str, PictureText]:
    """Of each picture that a template shows ("node.input"): its text."""
    api = Page(workflow, classes).api
    text_by_place = {}
    for key, name in pictures(api, classes):
        text = text_of_picture(api, key, name, classes.get)
        if text.text is None:  # what a run would tell: the encoders' texts as they arrive
            links = [place for place in text.encoders if isinstance(api[place[0]]["inputs"][place[1]], list)]
            arrivals = {place: f"{HEARD} {place}" for place in links}
            again = text_of_picture(api, key, name, classes.get, arrivals)
            if again.text is not None or (again.several and not text.several):
                text = replace(again, text=HEARD)
        text_by_place[f"{key}.{name}"] = text
    return text_by_place


def expect(text: PictureText) -> str | None:
    """What the list says of a text, or of all of several: a hash; "" for none, None for one that is not known."""
    said = "\0".join(text.several) or text.text
    return digest(said) if said else said


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def templates() -> dict[str, Any]:
    """By name; raises ImportError without the package."""
    import comfyui_workflow_templates_json as package

    by_name = {}
    for file in sorted(Path(str(package.__file__)).parent.joinpath("templates").glob("*.json")):
        content = json.loads(file.read_text("utf-8"))
        if isinstance(content, dict) and "nodes" in content:
            by_name[file.stem] = content
    return by_name


def definitions(source: str) -> dict[str, Any]:
    if source.startswith("http"):
        with urllib.request.urlopen(source.rstrip("/") + "/object_info", timeout=60) as answer:
            return dict(json.load(answer))
    return dict(json.loads(Path(source).read_text("utf-8")))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--object-info", help="a running ComfyUI's URL, or a file of its /object_info")
    parser.add_argument("--review", action="store_true", help="print all texts that are found")
    parser.add_argument(
        "--accept", action="store_true", help="write what is found into the list, after a review"
    )
    options = parser.parse_args()
    try:
        workflows = templates()
    except ImportError:
        print("comfyui-workflow-templates-json is not installed: nothing was measured.")
        return 0
    if not options.object_info:
        print("--object-info is not given: without a ComfyUI's definitions nothing was measured.")
        return 0
    classes = definitions(options.object_info)
    expected = json.loads(EXPECTED.read_text("utf-8")) if EXPECTED.exists() else {}
    counts: Counter[str] = Counter()
    new = {}
    for name, workflow in workflows.items():
        if missing := lacking(workflow, classes):
            counts["not judged: a node is missing here"] += 1
            if options.review:
                print(f"{name}: needs {', '.join(sorted(missing))}")
            continue
        stamp = digest(json.dumps(workflow, sort_keys=True))
        listed = expected.get(name, {})
        results = texts(workflow, classes)
        new[name] = {
            "template": stamp,
            "texts": {place: expect(text) for place, text in results.items() if text.text != HEARD},
        }
        for place, text in results.items():
            if options.review:
                sentence = text.why if text.text is None else repr(text.text)
                print(f"{name} {place}: {'UNKNOWN ' if text.text is None else ''}{sentence}")
            if listed.get("template") != stamp:
                counts["not judged: not in the list"] += 1
            elif text.text == HEARD:
                counts[RUN] += 1
            elif text.text is None and not text.several:
                counts[UNKNOWN] += 1
            elif listed["texts"].get(place, HEARD) == expect(text):
                counts[SEVERAL if text.several else RIGHT if text.text else "right: no text"] += 1
            else:
                counts["WRONG"] += 1
                print(f"wrong: {name} {place}: {expect(text) and (text.several or text.text)!r}")
        if listed.get("template") != stamp and results:
            print(f"not in the list: {name}")
    if options.accept:
        still_there = {name: listed for name, listed in expected.items() if name in workflows}
        EXPECTED.write_text(json.dumps(still_there | new, indent=0, sort_keys=True) + "\n", "utf-8")
    for what, count in sorted(counts.items()):
        print(f"{what:<40} {count:5d}   {count / max(1, counts.total()):6.1%}")
    texts_in_all = sum(counts[what] for what in (RIGHT, SEVERAL, RUN, UNKNOWN))
    if texts_in_all:
        print(
            f"not known by the workflow alone: {(counts[RUN] + counts[UNKNOWN]) / texts_in_all:.1%}", end=", "
        )
        print(f"after a run: {counts[UNKNOWN] / texts_in_all:.1%} of {texts_in_all} places with a text")
    return 1 if counts["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
