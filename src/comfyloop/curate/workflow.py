"""A workflow as nodes and edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Edge(NamedTuple):
    source: str
    slot: int
    target: str
    input: str


@dataclass(frozen=True)
class Node:
    class_type: str
    values: Mapping[str, str]  # widget name -> JSON text of its value


@dataclass(frozen=True)
class Workflow:
    nodes: Mapping[str, Node]
    edges: frozenset[Edge]

    def without(self, hidden: Callable[[str, str], bool]) -> Workflow:
        """The workflow less the values for which ``hidden(class_type, name)``."""
        nodes = {
            key: Node(
                node.class_type, {n: v for n, v in node.values.items() if not hidden(node.class_type, n)}
            )
            for key, node in self.nodes.items()
        }
        return Workflow(nodes, self.edges)
