"""Whether a suggested edit can be made in this ComfyUI: by what its nodes say of their inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .wiring import Define

Graph = dict[str, Any]
Step = Mapping[str, Any]

PLAIN = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
"""Types whose values are set in the node itself."""


def check(graph: Graph, steps: Sequence[Step], define: Define) -> None:
    """Do the steps on a copy of the graph. Raises ValueError, whose sentence says what cannot be done."""
    edit = _Edit({key: {**node, "inputs": dict(node["inputs"])} for key, node in graph.items()}, define)
    for step in steps:
        edit.do(step)
    edit.nothing_missing(graph)


class _Edit:
    def __init__(self, graph: Graph, define: Define) -> None:
        self.graph, self._define = graph, define

    def do(self, step: Step) -> None:
        what, node = step["do"], step["node"]
        if what == "add":
            if self._define(step["class_type"]) is None:
                raise ValueError(f"there is no node class {step['class_type']!r} here")
            self.graph[node] = {"class_type": step["class_type"], "inputs": {}}
            for name, value in (step.get("values") or {}).items():
                self._set(node, name, value)
        elif node not in self.graph:
            raise ValueError(f"there is no node {node}")
        elif what == "remove":
            del self.graph[node]
            for other in self.graph.values():
                held = other["inputs"].items()
                other["inputs"] = {n: v for n, v in held if not (_link(v) and v[0] == node)}
        elif what == "set":
            self._set(node, step["input"], step["value"])
        elif what == "connect":
            self._connect(step["source"], step["slot"], node, step["input"])
        else:
            self.graph[node]["inputs"].pop(step["input"], None)

    def _set(self, node: str, name: str, value: Any) -> None:
        spec = self._spec(node, name)
        if spec is not None and (why := _unfit(spec, value)):
            raise ValueError(f"{name} of {self._class(node)} cannot be {value!r}: {why}")
        self.graph[node]["inputs"][name] = value

    def _connect(self, source: str, slot: int, node: str, name: str) -> None:
        if source not in self.graph:
            raise ValueError(f"there is no node {source}")
        spec = self._spec(node, name)
        outputs = (self._define(self._class(source)) or {}).get("output") or ()
        if slot >= len(outputs):
            raise ValueError(f"{self._class(source)} has no output {slot}")
        if spec is not None and not _fits(outputs[slot], spec[0]):
            raise ValueError(f"{name} of {self._class(node)} takes {_type(spec[0])}, not {_type(outputs[slot])}")
        self.graph[node]["inputs"][name] = [source, slot]

    def _class(self, node: str) -> str:
        return str(self.graph[node]["class_type"])

    def _specs(self, node: str) -> dict[str, Any]:
        parts = (self._define(self._class(node)) or {}).get("input") or {}
        return {**(parts.get("required") or {}), **(parts.get("optional") or {})}

    def _spec(self, node: str, name: str) -> Any:
        """What an input takes; None where that depends on other inputs, as the name of one that is there tells."""
        known = self._specs(node)
        if name not in known and name not in self.graph[node]["inputs"]:
            raise ValueError(f"{self._class(node)} has no input {name!r}")
        return known.get(name)

    def nothing_missing(self, before: Graph) -> None:
        """Inputs that need a link have one, unless they had none before."""
        for key, node in self.graph.items():
            required = ((self._define(self._class(key)) or {}).get("input") or {}).get("required") or {}
            held = (before.get(key) or node)["inputs"]
            for name, spec in required.items():
                linked = _type(spec[0]) not in PLAIN and not _type(spec[0]).startswith("COMFY_")
                was = key not in before or name in held
                if linked and was and name not in node["inputs"]:
                    raise ValueError(f"{self._class(key)} would have nothing at {name}")


def _link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _type(kind: Any) -> str:
    return kind if isinstance(kind, str) else "COMBO"


def _fits(given: Any, taken: Any) -> bool:
    one, other = (set(_type(kind).split(",")) for kind in (given, taken))
    return "*" in one | other or bool(one & other) or any(name.startswith("COMFY_") for name in one | other)


def _unfit(spec: Any, value: Any) -> str:
    """Why a value is none for an input; empty where it is one."""
    kind, options = spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    choices = kind if isinstance(kind, (list, tuple)) else options.get("options") if kind == "COMBO" else None
    if isinstance(choices, (list, tuple)):
        return "" if value in choices or options.get("multiselect") else "it is none of the choices"
    if kind in ("INT", "FLOAT"):
        if not number or (kind == "INT" and value != int(value)):
            return "it is no number" if not number else "it is no whole number"
        low, high = options.get("min"), options.get("max")
        if (low is not None and value < low) or (high is not None and value > high):
            return f"it goes from {low} to {high}"
        return ""
    if kind in ("STRING", "BOOLEAN"):
        right = isinstance(value, str) if kind == "STRING" else isinstance(value, bool)
        return "" if right else "it is a text" if kind == "STRING" else "it is true or false"
    return "" if kind in PLAIN or str(kind).startswith("COMFY_") else "it takes a link"
