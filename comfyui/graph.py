"""What a person changed between two runs of a workflow, both in ComfyUI's API form. Pure functions.

Here it is only decided *whether* there is something to tell, and which texts changed; the smallest edit between
the two graphs is worked out by the service when it makes samples. Seeds that ComfyUI rolls by itself are no edit,
nor is a copy with other node ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .redact import is_link

Graph = dict[str, Any]
IsText = Callable[[str, str], bool]

CHANCE = frozenset({"seed", "noise_seed", "control_after_generate"})


@dataclass(frozen=True)
class TextEdit:
    """`before_node` and `node` are its ids in the two graphs; they differ in a renumbered copy."""

    before_node: str
    node: str
    input: str
    before: str
    after: str


def text_edits(before: Graph, after: Graph, is_text: IsText) -> list[TextEdit]:
    """Texts that differ between nodes that are the same but for them.

    `is_text(class_type, input)` tells prompts from file names and choices. Negative prompts are no prompts:
    a text that reaches images only through inputs called "negative" is left out.
    """
    edits = []
    for old, new in pair(before, after, is_text).items():
        was, now = before[old], after[new]
        for name, value in now["inputs"].items():
            earlier = was["inputs"].get(name)
            if (
                isinstance(value, str)
                and isinstance(earlier, str)
                and value.strip() != earlier.strip()
                and is_text(now["class_type"], name)
                and not only_negative(after, new)
            ):
                edits.append(TextEdit(old, new, name, earlier, value))
    return edits


def changed(before: Graph, after: Graph, is_text: IsText) -> bool:
    """Whether anything but positive prompts, seeds and ids differs: links, nodes or values."""
    return _shape(before, is_text) != _shape(after, is_text)


def related(before: Graph, after: Graph) -> bool:
    """Whether `after` is an edit of `before` rather than another workflow: most nodes are shared."""
    shared = sum(1 for key in after if key in before and before[key]["class_type"] == after[key]["class_type"])
    if shared * 2 < max(len(before), len(after)):
        old, new = (sorted(node["class_type"] for node in g.values()) for g in (before, after))
        shared = sum(min(old.count(c), new.count(c)) for c in set(old))
        return shared * 2 >= max(len(old), len(new)) and not set(before) & set(after)
    return True


def pair(before: Graph, after: Graph, is_text: IsText) -> dict[str, str]:
    """Which node of `before` is which of `after`: by id and class; where the ids are others, by structure."""
    pairs = {k: k for k in before if k in after and before[k]["class_type"] == after[k]["class_type"]}
    if pairs:
        return pairs
    colours_before, colours_after = (_colours(graph, is_text) for graph in (before, after))
    by_colour: dict[str, list[str]] = {}
    for key, colour in colours_after.items():
        by_colour.setdefault(colour, []).append(key)
    for key, colour in colours_before.items():
        same = by_colour.get(colour, [])
        if len(same) == 1 and list(colours_before.values()).count(colour) == 1:
            pairs[key] = same[0]
    return pairs


def downstream(graph: Graph, node: str) -> set[str]:
    """The node and all that its outputs reach."""
    reached, edge = {node}, [node]
    while edge:
        source = edge.pop()
        for target, _ in _targets(graph, source):
            if target not in reached:
                reached.add(target)
                edge.append(target)
    return reached


def only_negative(graph: Graph, node: str) -> bool:
    """Whether all ways from a node's outputs enter an input called "negative" before an image is made."""
    seen, edge, positive, negative = {node}, [node], False, False
    while edge:
        for target, name in _targets(graph, edge.pop()):
            if name == "negative":
                negative = True
            elif name == "positive":
                positive = True
            elif target not in seen:
                seen.add(target)
                edge.append(target)
    return negative and not positive


def prompt_of_images(graph: Graph, node: str, input: str, is_text: IsText) -> str:
    """The positive prompt that the images at an input were made from, or "" when it cannot be told."""
    value = (graph.get(node) or {}).get("inputs", {}).get(input)
    seen: set[str] = set()
    edge = [value[0]] if is_link(value, graph) else []
    while edge:
        key = edge.pop(0)
        if key in seen:
            continue
        seen.add(key)
        inputs = graph[key]["inputs"]
        if is_link(inputs.get("positive"), graph):
            return _first_text(graph, inputs["positive"][0], is_text)
        edge += [v[0] for v in inputs.values() if is_link(v, graph)]
    return ""


def _first_text(graph: Graph, node: str, is_text: IsText) -> str:
    seen: set[str] = set()
    edge = [node]
    while edge:
        key = edge.pop(0)
        if key in seen:
            continue
        seen.add(key)
        for name, value in graph[key]["inputs"].items():
            if isinstance(value, str) and is_text(graph[key]["class_type"], name):
                return value
            if is_link(value, graph):
                edge.append(value[0])
    return ""


def _targets(graph: Graph, source: str) -> Iterator[tuple[str, str]]:
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            if is_link(value, graph) and value[0] == source:
                yield key, name


def _shape(graph: Graph, is_text: IsText) -> list[str]:
    return sorted(_colours(graph, is_text).values())


def _colours(graph: Graph, is_text: IsText) -> dict[str, str]:
    """A hash per node of its class, values and surroundings, in which ids and positive prompts do not count."""
    colours = {}
    for key, node in graph.items():
        values = {
            name: _plain(value)
            for name, value in node["inputs"].items()
            if name not in CHANCE
            and not is_link(value, graph)
            and not (isinstance(value, str) and is_text(node["class_type"], name) and not only_negative(graph, key))
        }
        colours[key] = _hash([node["class_type"], values])
    kinds = 0
    while len(set(colours.values())) > kinds:  # refine until no colour splits any more
        kinds = len(set(colours.values()))
        around: dict[str, list[Any]] = {key: [] for key in graph}
        for key, node in graph.items():
            for name, value in node["inputs"].items():
                if is_link(value, graph):
                    around[key].append(["in", name, value[1], colours[value[0]]])
                    around[value[0]].append(["out", name, value[1], colours[key]])
        colours = {key: _hash([colours[key], sorted(map(json.dumps, around[key]))]) for key in graph}
    return colours


def _plain(value: Any) -> Any:
    """7.0 as 7: JavaScript makes no difference."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
