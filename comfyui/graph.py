"""What a person changed between two runs of a workflow, both in ComfyUI's API form. Pure functions.

Here it is only decided *whether* there is something to tell, and which texts changed; the smallest edit between
the two graphs is worked out by the service when it makes samples. Seeds that ComfyUI rolls by itself are no edit,
nor is another picture loaded, nor a copy with other node ids (pasted, or moved into a subgraph, where ids are
paths like "12:3").
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .redact import is_link

Graph = dict[str, Any]
Kind = Literal["prompt", "data", "value"]
"""What an input is for: a text to make images from; what the workflow works on (a file, a question); a setting."""
KindOf = Callable[[str, str], Kind]
"""(class, input) -> kind"""

OURS = "ComfyLoop"
"""How our own node classes begin."""
CHANCE = frozenset({"seed", "noise_seed", "control_after_generate"})


@dataclass(frozen=True)
class TextEdit:
    """`before_node` and `node` are its ids in the two graphs; they differ in a renumbered copy."""

    before_node: str
    node: str
    input: str
    before: str
    after: str


def without_data(graph: Graph, kind_of: KindOf) -> Graph:
    """The graph less the names of files and the questions that it works on: they are no part of how it is built."""
    return {
        key: {**node, "inputs": {n: v for n, v in node["inputs"].items() if kind_of(node["class_type"], n) != "data"}}
        for key, node in graph.items()
    }


def text_edits(before: Graph, after: Graph, kind_of: KindOf) -> list[TextEdit]:
    """Prompts that differ between nodes that are the same but for them.

    Negative prompts are none: a text that reaches images only through inputs called "negative" is left out.
    """
    edits = []
    for old, new in pair(before, after, kind_of).items():
        was, now = before[old], after[new]
        for name, value in now["inputs"].items():
            earlier = was["inputs"].get(name)
            if (
                isinstance(value, str)
                and isinstance(earlier, str)
                and value.strip() != earlier.strip()
                and kind_of(now["class_type"], name) == "prompt"
                and not only_negative(after, new)
            ):
                edits.append(TextEdit(old, new, name, earlier, value))
    return edits


def changed(before: Graph, after: Graph, kind_of: KindOf) -> bool:
    """Whether links, nodes or settings differ: positive prompts, seeds and ids do not count."""
    return sorted(_colours(before, kind_of).values()) != sorted(_colours(after, kind_of).values())


def related(before: Graph, after: Graph) -> bool:
    """Whether `after` is an edit of `before` rather than another workflow: most of its nodes are of the same kind."""
    old, new = (Counter(node["class_type"] for node in graph.values()) for graph in (before, after))
    return (old & new).total() * 2 >= max(len(before), len(after))


def pair(before: Graph, after: Graph, kind_of: KindOf) -> dict[str, str]:
    """Which node of `before` is which of `after`: by id and class; those with other ids now, by structure."""
    pairs = {key: key for key in before if key in after and before[key]["class_type"] == after[key]["class_type"]}
    if len(pairs) < len(before):
        old, new = ({c: k for k, c in _single(_colours(graph, kind_of))} for graph in (before, after))
        taken = set(pairs.values())
        for colour in old.keys() & new.keys():
            if old[colour] not in pairs and new[colour] not in taken:
                pairs[old[colour]] = new[colour]
    return pairs


def _single(colours: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Nodes that no other node looks like."""
    often = Counter(colours.values())
    return ((key, colour) for key, colour in colours.items() if often[colour] == 1)


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


def prompt_of_images(graph: Graph, node: str, input: str, kind_of: KindOf) -> str:
    """The positive prompt that the images at an input were made from, or "" when it cannot be told."""
    value = (graph.get(node) or {}).get("inputs", {}).get(input)
    start = [value[0]] if is_link(value, graph) else []
    for key in _upstream(graph, start):
        positive = graph[key]["inputs"].get("positive")
        if is_link(positive, graph):
            return _first_text(graph, positive[0], kind_of)
    return ""


def aim(graph: Graph, nodes: list[str], kind_of: KindOf) -> str:
    """What a workflow is for, as far as it says: the prompt behind the images that these nodes gave out."""
    found = (
        prompt_of_images(graph, node, name, kind_of)
        for node in nodes
        for name in graph.get(node, {"inputs": {}})["inputs"]
    )
    return next(filter(None, found), "")


def _first_text(graph: Graph, node: str, kind_of: KindOf) -> str:
    for key in _upstream(graph, [node]):
        for name, value in graph[key]["inputs"].items():
            if isinstance(value, str) and kind_of(graph[key]["class_type"], name) == "prompt":
                return value
    return ""


def _upstream(graph: Graph, start: list[str]) -> Iterator[str]:
    """These nodes and what they are made from, the nearest first."""
    edge, seen = list(start), set(start)
    while edge:
        key = edge.pop(0)
        yield key
        for value in graph[key]["inputs"].values():
            if is_link(value, graph) and value[0] not in seen:
                seen.add(value[0])
                edge.append(value[0])


def _targets(graph: Graph, source: str) -> Iterator[tuple[str, str]]:
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            if is_link(value, graph) and value[0] == source:
                yield key, name


def _colours(graph: Graph, kind_of: KindOf) -> dict[str, str]:
    """A hash per node of its class, settings and surroundings; ids, seeds and positive prompts do not count."""

    def counts(key: str, name: str) -> bool:
        kind = kind_of(graph[key]["class_type"], name)
        return name not in CHANCE and (kind != "prompt" or only_negative(graph, key))

    colours = {}
    for key, node in graph.items():
        values = {n: _plain(v) for n, v in node["inputs"].items() if not is_link(v, graph) and counts(key, n)}
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
