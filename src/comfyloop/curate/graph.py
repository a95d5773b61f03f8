"""Workflow graphs and what changed between two of them: pure functions.

A workflow comes in ComfyUI's API form, ``{id: {"class_type": …, "inputs": {name: value | [source, slot]}}}``.
Node ids are names that ComfyUI may hand out anew, so nodes are matched by id and class and then by structure:
a copy with other ids differs in nothing. Edges are (source, slot, target, input name).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from comfyloop.curate.graph_match import match
from comfyloop.curate.workflow import Edge, Node, Workflow


class ValueChange(NamedTuple):
    """A widget's JSON text before and after; None where there is no such value."""

    node: str
    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class GraphDiff:
    """What to do to `before`. Its nodes keep their ids; added ones are called "+" and their id in `after`."""

    added: Mapping[str, Node]
    removed: frozenset[str]
    connected: frozenset[Edge]
    disconnected: frozenset[Edge]
    changed: tuple[ValueChange, ...]

    def __len__(self) -> int:
        parts = (self.added, self.removed, self.connected, self.disconnected, self.changed)
        return sum(len(part) for part in parts)


def parse(api: Mapping[str, Any]) -> Workflow:
    """Reads the API form; titles, positions and other ``_meta`` are left out.

    Raises:
        ValueError: A node is not of that form; the message names it.
    """
    nodes: dict[str, Node] = {}
    edges: set[Edge] = set()
    for key, node in api.items():
        class_type = node.get("class_type") if isinstance(node, Mapping) else None
        inputs = node.get("inputs", {}) if isinstance(node, Mapping) else None
        if not isinstance(class_type, str) or not isinstance(inputs, Mapping):
            raise ValueError(f"node {key} has no class_type or no inputs: it is not in ComfyUI's API form")
        values: dict[str, str] = {}
        for name, value in inputs.items():
            if _is_link(value, api):
                edges.add(Edge(str(value[0]), int(value[1]), key, name))
            else:
                values[name] = json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)
        nodes[key] = Node(class_type, values)
    return Workflow(nodes, frozenset(edges))


def _is_link(value: Any, api: Mapping[str, Any]) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and value[0] in api
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def _plain(value: Any) -> Any:
    """The value with whole floats as integers: JavaScript writes 7.0 as 7."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def diff(before: Workflow, after: Workflow) -> GraphDiff:
    """The smallest edit found that makes `after` of `before`; false (of length 0) when nothing changed."""
    return min((_diff(before, after, pairs) for pairs in match(before, after)), key=len)


def _diff(before: Workflow, after: Workflow, pairs: Mapping[str, str]) -> GraphDiff:
    names = {new: old for old, new in pairs.items()}
    for key in after.nodes:
        if key not in names:
            name = f"+{key}"
            while name in before.nodes:
                name = f"+{name}"
            names[key] = name
    edges = frozenset(Edge(names[e.source], e.slot, names[e.target], e.input) for e in after.edges)
    changed = [
        ValueChange(old, name, was, now)
        for old, new in pairs.items()
        for name in sorted({*before.nodes[old].values, *after.nodes[new].values})
        if (was := before.nodes[old].values.get(name)) != (now := after.nodes[new].values.get(name))
    ]
    return GraphDiff(
        added={names[key]: node for key, node in after.nodes.items() if names[key] not in before.nodes},
        removed=frozenset(before.nodes.keys() - pairs.keys()),
        connected=edges - before.edges,
        disconnected=before.edges - edges,
        changed=tuple(changed),
    )


MOST_STEPS = 40
"""An edit of more steps is another workflow rather than something to learn."""
MOST_NEAR = 40
"""Nodes that are shown beside those which an edit names."""


def around(before: Workflow, change: GraphDiff, hops: int = 2) -> tuple[Workflow, GraphDiff]:
    """What an edit touches and its neighbourhood, of a workflow of any size; and the edit, which is the same there."""
    edges = change.connected | change.disconnected
    touched = {key for edge in edges for key in (edge.source, edge.target)} | change.removed
    return near(before, touched | {item.node for item in change.changed}, hops), change


def near(before: Workflow, touched: Iterable[str], hops: int = 2) -> Workflow:
    """These nodes and what is so many links away from them, as far as it is not too much to be shown."""
    kept = set(touched) & before.nodes.keys()
    neighbours: dict[str, set[str]] = {key: set() for key in before.nodes}
    for edge in before.edges:
        neighbours[edge.source].add(edge.target)
        neighbours[edge.target].add(edge.source)
    most, edge_of = len(kept) + MOST_NEAR, set(kept)
    for _ in range(hops):
        edge_of = {key for at in edge_of for key in neighbours[at]} - kept
        if len(kept | edge_of) > most:
            break
        kept |= edge_of
    if not kept:  # only nodes were added, and linked to nothing
        kept = set(sorted(before.nodes)[:MOST_NEAR])
    edges = frozenset(edge for edge in before.edges if edge.source in kept and edge.target in kept)
    return Workflow({key: node for key, node in before.nodes.items() if key in kept}, edges)


def apply(before: Workflow, change: GraphDiff) -> Workflow:
    """`before` with the change made: the same as `after` but for the ids of its nodes."""
    nodes = {key: Node(n.class_type, dict(n.values)) for key, n in before.nodes.items()}
    for key in change.removed:
        del nodes[key]
    nodes |= change.added
    for node, name, _, now in change.changed:
        values = {k: v for k, v in nodes[node].values.items() if k != name}
        nodes[node] = Node(nodes[node].class_type, values if now is None else {**values, name: now})
    return Workflow(nodes, (before.edges - change.disconnected) | change.connected)
