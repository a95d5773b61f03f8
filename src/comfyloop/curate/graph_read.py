"""An edit that a model wrote, read back: what `graph_text.describe` writes, as a change of the workflow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from comfyloop.curate.graph import MOST_STEPS, GraphDiff, ValueChange
from comfyloop.curate.graph_text import hidden, numbering
from comfyloop.curate.workflow import Edge, Node, Workflow

_REMOVE = re.compile(r"remove (\S+)")
_ADD = re.compile(r"add (\+\S+) (\S.*)")
_DISCONNECT = re.compile(r"disconnect ([^\s.]+)\.(\S.*)")
_CONNECT = re.compile(r"connect ([^\s.]+)\.(\d+) -> ([^\s.]+)\.(\S.*)")
_SET = re.compile(r"set ([^\s.]+)\.(\S.*?) = (.+)")
_UNSET = re.compile(r"unset ([^\s.]+)\.(\S.*)")
_FIRST = re.compile(r" [^\s=]+=(?=[\[{\"\d\-tfn])")  # after a class, which may have spaces in it
_VALUE = re.compile(r" ([^\s=][^=]*?)=(?=[\[{\"\d\-tfn])")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


_JSON = json.JSONDecoder(parse_constant=_no_number)


def read(before: Workflow, text: str) -> GraphDiff:
    """What the text does to `before`, by the numbers that its nodes were asked about with.

    Raises:
        ValueError: It is no edit of this workflow; the sentence says which line, and why.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    lines = [line for line in lines if line and not line.startswith("```")]
    if not lines:
        raise ValueError("it is empty")
    if len(lines) > MOST_STEPS:
        raise ValueError(f"it has {len(lines)} steps; {MOST_STEPS} are the most")
    draft = _Draft(before)
    for line in lines:
        try:
            draft.do(line)
        except ValueError as error:
            shown = line if len(line) <= 80 else f"{line[:80]}…"
            raise ValueError(f"in the line {shown!r}, {error}") from None
    change = draft.change()
    if not change:
        raise ValueError("it changes nothing")
    if draft.circular():
        raise ValueError("it links nodes in a circle")
    return change


class _Draft:
    """The workflow while the lines are done, one after the other."""

    def __init__(self, before: Workflow) -> None:
        self._before = before
        self._names = {number: key for key, number in numbering(before).items()}
        self._classes = {key: node.class_type for key, node in before.nodes.items()}
        self._values = {key: dict(node.values) for key, node in before.nodes.items()}
        self._sources = {(edge.target, edge.input): (edge.source, edge.slot) for edge in before.edges}

    def do(self, line: str) -> None:
        if found := _REMOVE.fullmatch(line):
            self._remove(self._node(found[1]))
        elif found := _ADD.fullmatch(line):
            self._add(found[1], found[2])
        elif found := _DISCONNECT.fullmatch(line):
            place = (self._node(found[1]), found[2])
            if self._sources.pop(place, None) is None:
                raise ValueError(f"nothing is connected to {found[2]} of node {found[1]}")
        elif found := _CONNECT.fullmatch(line):
            source, target = self._node(found[1]), self._node(found[3])
            self._sources[target, found[4]] = (source, int(found[2]))
            self._values[target].pop(found[4], None)
        elif found := _SET.fullmatch(line):
            node = self._node(found[1])
            self._values[node][found[2]] = self._value(node, found[2], found[3])
            self._sources.pop((node, found[2]), None)
        elif found := _UNSET.fullmatch(line):
            if self._values[self._node(found[1])].pop(found[2], None) is None:
                raise ValueError(f"node {found[1]} has no value {found[2]}")
        else:
            raise ValueError("there is no step of a workflow's edit")

    def _node(self, number: str) -> str:
        key = self._names.get(number)
        if key is None:
            raise ValueError(f"there is no node {number}")
        return key

    def _remove(self, key: str) -> None:
        self._names = {number: other for number, other in self._names.items() if other != key}
        del self._classes[key], self._values[key]
        self._sources = {
            place: source for place, source in self._sources.items() if key not in (place[0], source[0])
        }

    def _add(self, number: str, rest: str) -> None:
        if number in self._names or number in self._classes:
            raise ValueError(f"there is a node {number} already")
        first = _FIRST.search(f" {rest}")
        class_type = rest if first is None else f" {rest}"[: first.start()].strip()
        if not class_type:
            raise ValueError("a node has no class")
        self._names[number] = number
        self._classes[number], self._values[number] = class_type, {}
        rest = "" if first is None else f" {rest}"[first.start() :]
        while rest.strip():
            found = _VALUE.match(rest)
            if found is None:
                raise ValueError(f"{rest.strip()[:40]!r} is no name and value")
            try:
                value, end = _JSON.raw_decode(rest, found.end())
            except (ValueError, RecursionError):
                raise ValueError(f"the value of {found[1]} cannot be read") from None
            self._values[number][found[1]] = self._value(number, found[1], json.dumps(value))
            rest = rest[end:]

    def _value(self, node: str, name: str, text: str) -> str:
        """JSON as workflows are read: numbers and names in one order."""
        try:
            value = _JSON.decode(text)
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            plain = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
        except (ValueError, RecursionError):
            raise ValueError(f"the value of {name} cannot be read") from None
        if hidden(self._classes[node], name):
            raise ValueError(f"{name} is not for a model to set")
        return plain

    def change(self) -> GraphDiff:
        before = self._before
        edges = frozenset(
            Edge(source, slot, target, name) for (target, name), (source, slot) in self._sources.items()
        )
        return GraphDiff(
            added={key: self._made(key) for key in self._classes if key not in before.nodes},
            removed=frozenset(before.nodes.keys() - self._classes.keys()),
            connected=edges - before.edges,
            disconnected=before.edges - edges,
            changed=tuple(
                ValueChange(key, name, was, now)
                for key, node in before.nodes.items()
                if key in self._classes
                for name in sorted({*node.values, *self._values[key]})
                if (was := node.values.get(name)) != (now := self._values[key].get(name))
            ),
        )

    def _made(self, key: str) -> Node:
        return Node(self._classes[key], self._values[key])

    def circular(self) -> bool:
        """Whether some node is made from itself."""
        waiting = {key: 0 for key in self._classes}
        goes: dict[str, list[str]] = {key: [] for key in self._classes}
        for (target, _), (source, _) in self._sources.items():
            waiting[target] += 1
            goes[source].append(target)
        ready = [key for key, count in waiting.items() if not count]
        for key in ready:
            for target in goes[key]:
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
        return len(ready) < len(waiting)


def steps(before: Workflow, change: GraphDiff) -> list[dict[str, Any]]:
    """The change as steps for whoever applies it, by the workflow's own ids; added nodes are called as in `change`.

    The order is one in which each can be done: nodes first, then what is taken from inputs and what is put there. A
    value is "unset" where another setting takes it away.
    """
    told: list[dict[str, Any]] = [{"do": "remove", "node": key} for key in sorted(change.removed)]
    told += [
        {"do": "add", "node": key, "class_type": node.class_type, "values": _plain(node.values)}
        for key, node in change.added.items()
    ]
    filled = {(edge.target, edge.input) for edge in change.connected}
    gone = change.removed
    told += [
        {"do": "disconnect", "node": edge.target, "input": edge.input}
        for edge in sorted(change.disconnected)
        if edge.target not in gone and edge.source not in gone and (edge.target, edge.input) not in filled
    ]
    told += [
        {"do": "connect", "source": e.source, "slot": e.slot, "node": e.target, "input": e.input}
        for e in sorted(change.connected)
    ]
    told += [
        {
            "do": "set",
            "node": item.node,
            "input": item.name,
            "value": json.loads(item.after),
            **({} if item.before is None else {"was": json.loads(item.before)}),
        }
        for item in change.changed
        if item.after is not None
    ]
    told += [
        {"do": "unset", "node": item.node, "input": item.name}
        for item in change.changed
        if item.after is None and (item.node, item.name) not in filled
    ]
    return told


def _plain(values: Mapping[str, str]) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in values.items()}
