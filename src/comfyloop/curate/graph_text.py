"""Workflows and their edits as short text that a language model can read and write.

A workflow is one line a node, sources before targets, nodes numbered in that order::

    1 CheckpointLoaderSimple ckpt_name="v1-5.safetensors"
    2 CLIPTextEncode text="a red fox" clip=1.1
    3 KSampler cfg=7 steps=20 model=1.0 positive=2.0

and an edit one line a step, in terms of those numbers; a link replaces what its input held before::

    add +1 LoraLoader lora_name="ink.safetensors"
    connect 1.0 -> +1.model
    connect +1.0 -> 3.model
    set 3.cfg = 5.5
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Mapping

from comfyloop.curate.graph import GraphDiff
from comfyloop.curate.graph_match import links
from comfyloop.curate.workflow import Edge, Node, Workflow

CHANCE = frozenset({"seed", "noise_seed"})
"""Widgets that ComfyUI changes by itself after a run: no edit of the person."""

LONGEST = 6_000
"""Characters of a question and its answer: some 2,000 tokens, which small models take too."""
_SHOWN = 300  # characters of a value of the workflow; longer ones end in dots

_SECRET = re.compile(r"(^|[_\W])(api_?key|key|token|password|passwd|secret)([_\W]|$)", re.IGNORECASE)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def hidden(class_type: str, name: str) -> bool:
    """Whether a value is left out of all text: seeds, and whatever is named like a secret."""
    return name in CHANCE or any(_SECRET.search(_WORDS.sub("_", word)) for word in (class_type, name))


def question(before: Workflow, aim: str) -> str:
    """What is asked: the workflow as it is, and what the person is after."""
    return f"Workflow:\n{render(before)}\n\nAim: {aim.strip() or 'not said'}\n\nEdit:"


def render(workflow: Workflow) -> str:
    numbers = numbering(workflow)
    return "\n".join(
        _line(numbers[key], _shortened(workflow.nodes[key]), _inputs(workflow.edges, key, numbers))
        for key in numbers
    )


def _shortened(node: Node) -> Node:
    values = {name: v if len(v) <= _SHOWN else f"{v[:_SHOWN]}…" for name, v in node.values.items()}
    return Node(node.class_type, values)


def describe(before: Workflow, change: GraphDiff) -> str:
    """The edit, one line a step. Links that vanish with their node or are replaced are not said apart."""
    numbers = numbering(before)
    names = numbers | {key: f"+{place}" for place, key in enumerate(change.added, start=1)}
    lines = [f"remove {numbers[key]}" for key in numbers if key in change.removed]
    lines += [f"add {_line(names[key], node, [])}" for key, node in change.added.items()]
    place = {key: index for index, key in enumerate(names)}

    def order(edge: Edge) -> tuple[int, str, int, int]:
        return place[edge.target], edge.input, place[edge.source], edge.slot

    filled = {(edge.target, edge.input) for edge in change.connected}
    filled |= {(item.node, item.name) for item in change.changed if item.after is not None}
    for edge in sorted(change.disconnected, key=order):
        gone = edge.source in change.removed or edge.target in change.removed
        if not gone and (edge.target, edge.input) not in filled:
            lines.append(f"disconnect {names[edge.target]}.{edge.input}")
    for edge in sorted(change.connected, key=order):
        lines.append(f"connect {names[edge.source]}.{edge.slot} -> {names[edge.target]}.{edge.input}")
    for item in sorted(change.changed, key=lambda item: (place[item.node], item.name)):
        if item.after is not None:
            lines.append(f"set {names[item.node]}.{item.name} = {item.after}")
        elif (item.node, item.name) not in filled:
            lines.append(f"unset {names[item.node]}.{item.name}")
    return "\n".join(lines)


def _line(number: str, node: Node, inputs: list[str]) -> str:
    return " ".join([number, node.class_type, *(f"{n}={v}" for n, v in sorted(node.values.items())), *inputs])


def _inputs(edges: frozenset[Edge], key: str, numbers: Mapping[str, str]) -> list[str]:
    mine = sorted((edge.input, edge) for edge in edges if edge.target == key)
    return [f"{name}={numbers[edge.source]}.{edge.slot}" for name, edge in mine]


def numbering(workflow: Workflow) -> dict[str, str]:
    """Numbers for the nodes, "1" upwards, sources first; the same for a copy with other ids."""
    outgoing, incoming = links(workflow)
    colour = {
        key: _digest(node.class_type, *(f"{n}={v}" for n, v in sorted(node.values.items())))
        for key, node in workflow.nodes.items()
    }
    for _ in range(min(len(colour), 32)):  # farther apart than that, nodes hardly tell each other apart
        colour = {
            key: _digest(
                colour[key],
                *sorted(f"<{label}{colour[other]}" for other, label in incoming[key]),
                *sorted(f">{label}{colour[other]}" for other, label in outgoing[key]),
            )
            for key in colour
        }
    waiting = {key: len(incoming[key]) for key in colour}
    ready = [(colour[key], key) for key, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        _, key = heapq.heappop(ready)
        order.append(key)
        for target, _ in outgoing[key]:
            waiting[target] -= 1
            if waiting[target] == 0:
                heapq.heappush(ready, (colour[target], target))
    done = set(order)  # a cycle, which ComfyUI would refuse to run, still gets numbers
    order += sorted(colour.keys() - done, key=lambda key: (colour[key], key))
    return {key: str(number) for number, key in enumerate(order, start=1)}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
