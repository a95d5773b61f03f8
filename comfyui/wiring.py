"""The nodes of a workflow in API form: what is linked to what, and of which type it is.

A class is known by its definition; one that is not known is read by the names of its inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Graph = Mapping[str, Any]
Define = Callable[[str], "Mapping[str, Any] | None"]
"""class -> what ``/object_info`` says of it: {"input": {part: {name: spec}}, "output": [type], "output_name": [name]};
None for a class that is not known, which is then read by its inputs' names."""

_CONDITIONING = re.compile(r"^(positive|negative|pos|neg|cond(itioning)?[_\w]*|guider)$", re.IGNORECASE)
_SAMPLES = frozenset({"sampler_name", "sampler", "sigmas", "denoise", "noise", "noise_seed", "steps"})
PIPE = re.compile("PIPE", re.IGNORECASE)


class Wiring:
    def __init__(self, graph: Graph, define: Define) -> None:
        self.graph = graph
        self._define, self._defined = define, dict[str, Any]()
        self._givers: set[str] | None = None  # the nodes that give some, as far as names tell

    def define(self, node: str) -> Mapping[str, Any]:
        class_type = self.graph[node]["class_type"]
        if class_type not in self._defined:
            self._defined[class_type] = self._define(class_type) or {}
        found: Mapping[str, Any] = self._defined[class_type]
        return found

    def inputs(self, node: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.graph[node].get("inputs") or {}
        return found

    def is_link(self, value: Any) -> bool:
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
            return False
        return value[0] in self.graph and isinstance(value[1], int)

    def links(self, node: str) -> list[tuple[str, list[Any]]]:
        return [(name, value) for name, value in self.inputs(node).items() if self.is_link(value)]

    def given_type(self, link: list[Any]) -> str:
        """The type of what a link carries; "" where it is not known."""
        outputs = self.define(link[0]).get("output") or ()
        if not isinstance(link[1], int) or not 0 <= link[1] < len(outputs):
            return ""
        found = outputs[link[1]]
        return found if isinstance(found, str) and found != "*" and not found.startswith("COMFY_") else ""

    def type_of(self, node: str, name: str, link: list[Any]) -> str:
        """Of what arrives at an input: by the node that takes it, else by the one that gives it."""
        return type_in(self.spec(node, name)) or self.given_type(link)

    def spec(self, node: str, name: str) -> Any:
        for part in (self.define(node).get("input") or {}).values():
            if isinstance(part, Mapping) and name in part:
                return part[name]
        return None

    def conditions(self, node: str) -> list[tuple[str, list[Any]]]:
        """The links that bring conditioning, or a guider or pipe that holds some."""
        found = []
        for name, link in self.links(node):
            kind = self.type_of(node, name, link)
            named = not kind and (_CONDITIONING.match(name) or PIPE.search(name))
            if kind in ("CONDITIONING", "GUIDER") or PIPE.search(kind) or named:
                found.append((name, link))
        return found

    def gives_conditioning(self, node: str) -> bool:
        if outputs := self.define(node).get("output"):
            return "CONDITIONING" in outputs
        if self._givers is None:
            every = ((name, link) for key in self.graph for name, link in self.links(key))
            self._givers = {link[0] for name, link in every if _CONDITIONING.match(name)}
        return node in self._givers

    def samples(self, node: str, slot: int) -> bool:
        """Whether pictures or latents that come out of a node are made by it, from conditioning."""
        if not self.conditions(node):
            return False
        if not self.gives_conditioning(node):
            return True
        return self.given_type([node, slot]) == "IMAGE" or bool(_SAMPLES & self.inputs(node).keys())


def type_in(spec: Any) -> str:
    found = spec[0] if isinstance(spec, (list, tuple)) and spec else ""
    return found if isinstance(found, str) and found != "*" and not found.startswith("COMFY_") else ""
