"""What a person changed between two runs of a workflow, both in ComfyUI's API form. Pure functions.

Here it is only decided *whether* there is something to tell, and which texts changed; the smallest edit between
the two graphs is worked out by the service when it makes samples. Seeds that ComfyUI rolls by itself are no edit,
nor is another picture loaded, nor a copy with other node ids (pasted, or moved into a subgraph, where ids are
paths like "12:3").
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from . import roles
from .redact import is_link
from .roles import Heard
from .wiring import Define

Graph = dict[str, Any]
Kind = Literal["prompt", "data", "value"]
"""What an input is for: a text to make images from; what the workflow works on (a file, a question); a setting."""
KindOf = Callable[[str, str], Kind]
"""(class, input) -> kind"""

OURS = "ComfyLoop"
"""How our own node classes begin."""
CHANCE = frozenset({"seed", "noise_seed", "control_after_generate"})


def unknown(class_type: str) -> None:
    """Where no definitions are at hand: nodes are read by the names of their inputs."""


@dataclass(frozen=True)
class TextEdit:
    """A prompt that a person changed, whole as it reached the encoder.

    `before_node` and `node` are where its text is written in the two graphs, at `input`; they differ in a renumbered
    copy. `shown_before` and `shown` are the nodes that show pictures made from it.
    """

    before_node: str
    node: str
    input: str
    before: str
    after: str
    shown_before: frozenset[str] = frozenset()
    shown: frozenset[str] = frozenset()


def without_data(graph: Graph, kind_of: KindOf) -> Graph:
    """The graph less the names of files and the questions that it works on: they are no part of how it is built."""
    return {
        key: {**node, "inputs": {n: v for n, v in node["inputs"].items() if kind_of(node["class_type"], n) != "data"}}
        for key, node in graph.items()
    }


def text_edits(
    before: Graph,
    after: Graph,
    kind_of: KindOf,
    define: Define = unknown,
    heard_before: Heard | None = None,
    heard: Heard | None = None,
    shows: Collection[str] | None = None,
) -> list[TextEdit]:
    """Prompts that differ between nodes that show pictures and are the same but for what these were made from.

    Only what a person wrote counts: where the workflow alone does not tell the text (a language model wrote it), or
    the encoder heard another (chance had a part in it), nothing is told. `shows` are the nodes of `after` that gave
    pictures out; None: those from which nothing goes on.
    """
    if shows is None:
        shows = after.keys() - {value[0] for _, value in _links(after)}
    edits: dict[tuple[str, str], TextEdit] = {}
    for old, new in pair(before, after, kind_of).items():
        if new not in shows:
            continue
        for name in roles.pictures_of(after, new, define):
            was, now = (
                _written(graph, node, name, define, told)
                for graph, node, told in ((before, old, heard_before), (after, new, heard))
            )
            if was is None or now is None or was.text is None or now.text is None:
                continue
            if not was.text.strip() or not now.text.strip() or was.text.strip() == now.text.strip():
                continue
            wrote = next((p for p in now.places if p not in was.places or _value(before, p) != _value(after, p)), None)
            place, earlier = wrote or now.places[0], was.places[0]
            known = edits.get((was.text, now.text))
            edits[was.text, now.text] = TextEdit(
                earlier[0] if known is None else known.before_node,
                place[0] if known is None else known.node,
                place[1] if known is None else known.input,
                was.text,
                now.text,
                (known.shown_before if known else frozenset()) | {old},
                (known.shown if known else frozenset()) | {new},
            )
    return list(edits.values())


def _written(graph: Graph, node: str, name: str, define: Define, heard: Heard | None) -> roles.PictureText | None:
    """The text of the pictures at an input as the workflow tells it; None where a run has heard another."""
    text = roles.text_of_picture(graph, node, name, define)
    if heard is not None and roles.text_of_picture(graph, node, name, define, heard).text != text.text:
        return None
    return text


def _links(graph: Graph) -> Iterator[tuple[tuple[str, str], list[Any]]]:
    """(node, input) and [source, slot] of each link."""
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            if is_link(value, graph):
                yield (key, name), value


def _value(graph: Graph, place: tuple[str, str]) -> Any:
    return (graph.get(place[0]) or {"inputs": {}})["inputs"].get(place[1])


def changed(before: Graph, after: Graph, kind_of: KindOf) -> bool:
    """Whether links, nodes or settings differ: positive prompts, seeds and ids do not count."""
    old, new = _colours([before, after], kind_of)
    return Counter(old.values()) != Counter(new.values())


def related(before: Graph, after: Graph) -> bool:
    """Whether `after` is an edit of `before` rather than another workflow: most of its nodes are of the same kind."""
    old, new = (Counter(node["class_type"] for node in graph.values()) for graph in (before, after))
    return (old & new).total() * 2 >= max(len(before), len(after))


def pair(before: Graph, after: Graph, kind_of: KindOf) -> dict[str, str]:
    """Which node of `before` is which of `after`: by id and class; those with other ids now, by structure."""
    pairs = {key: key for key in before if key in after and before[key]["class_type"] == after[key]["class_type"]}
    if len(pairs) < len(before):
        old, new = ({c: k for k, c in _single(colours)} for colours in _colours([before, after], kind_of))
        taken = set(pairs.values())
        for colour in old.keys() & new.keys():
            if old[colour] not in pairs and new[colour] not in taken:
                pairs[old[colour]] = new[colour]
    return pairs


def _single(colours: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Nodes that no other node looks like."""
    often = Counter(colours.values())
    return ((key, colour) for key, colour in colours.items() if often[colour] == 1)


def prompt_of_images(
    graph: Graph, node: str, input: str, kind_of: KindOf, define: Define = unknown, heard: Heard | None = None
) -> str:
    """The positive prompt that the images at an input were made from, or "" when it cannot be told."""
    return roles.text_of_picture(graph, node, input, define, heard).text or ""


def text_of_images(
    graph: Graph, kept: Graph, node: str, input: str, define: Define = unknown, heard: Heard | None = None
) -> roles.PictureText:
    """The text that the images at an input were made from, unless it comes from what is kept out of `kept`.

    `kept` is the graph without secrets and without what the person excludes.
    """
    text = roles.text_of_picture(graph, node, input, define, heard)
    if any(name not in kept.get(key, {"inputs": {}})["inputs"] for key, name in text.places + text.encoders):
        return roles.PictureText(None, "It comes from a node that is excluded, or is named like a secret.")
    return text


def aim(graph: Graph, nodes: list[str], kind_of: KindOf, define: Define = unknown, heard: Heard | None = None) -> str:
    """What a workflow is for, as far as it says: the prompt behind the images that these nodes gave out."""
    found = (
        prompt_of_images(graph, node, name, kind_of, define, heard)
        for node in nodes
        if node in graph
        for name in roles.pictures_of(graph, node, define)
    )
    return next(filter(None, found), "")


def aim_of_ends(graph: Graph, kind_of: KindOf, define: Define = unknown) -> str:
    """The same where nothing has run yet: of the nodes from which nothing goes on."""
    sources = {value[0] for _, value in _links(graph)}
    return aim(graph, [key for key in graph if key not in sources], kind_of, define)


def negatives(graph: Graph) -> set[str]:
    """The nodes from whose outputs all ways enter an input called "negative" before an image is made."""
    targets: dict[str, list[tuple[str, str]]] = {key: [] for key in graph}
    for place, value in _links(graph):
        targets[value[0]].append(place)
    return {key for key in graph if targets[key] and _only_negative(targets, key)}


def _only_negative(targets: dict[str, list[tuple[str, str]]], node: str) -> bool:
    seen, edge, negative = {node}, [node], False
    while edge:
        for target, name in targets[edge.pop()]:
            if name == "positive":
                return False
            if name == "negative":
                negative = True
            elif target not in seen:
                seen.add(target)
                edge.append(target)
    return negative


ROUNDS = 16
"""Farther apart than that, nodes hardly tell each other apart; and a long chain of like nodes costs no more."""


def _colours(graphs: list[Graph], kind_of: KindOf) -> list[dict[str, int]]:
    """A number per node for its class, settings and surroundings, the same in all the graphs.

    Ids, seeds and positive prompts do not count.
    """
    numbers: dict[Any, int] = {}
    found: list[dict[str, int]] = []
    around: list[dict[str, list[tuple[str, str, Any, str]]]] = []
    for graph in graphs:
        prompts = {
            (key, name)
            for key, node in graph.items()
            for name, value in node["inputs"].items()
            if isinstance(value, str) and kind_of(node["class_type"], name) == "prompt" and "negative" not in name
        }
        if prompts:
            prompts -= {(key, name) for key in negatives(graph) for name in graph[key]["inputs"]}
        colours, links = {}, {key: list[tuple[str, str, Any, str]]() for key in graph}
        for key, node in graph.items():
            values = {}
            for name, value in node["inputs"].items():
                if is_link(value, graph):
                    links[key].append(("in", name, value[1], value[0]))
                    links[value[0]].append(("out", name, value[1], key))
                elif name not in CHANCE and (key, name) not in prompts:
                    values[name] = _plain(value)
            content = json.dumps([node["class_type"], values], sort_keys=True, default=str)
            colours[key] = numbers.setdefault(content, len(numbers))
        found.append(colours)
        around.append(links)
    kinds = 0
    for _ in range(ROUNDS):  # refine while some colour still splits
        if (now := len({colour for colours in found for colour in colours.values()})) == kinds:
            break
        kinds, numbers = now, {}
        for place, links in enumerate(around):
            colours = found[place]
            keys = {
                key: (colours[key], tuple(sorted((w, n, str(slot), colours[other]) for w, n, slot, other in near)))
                for key, near in links.items()
            }
            found[place] = {key: numbers.setdefault(told, len(numbers)) for key, told in keys.items()}
    return found


def _plain(value: Any) -> Any:
    """7.0 as 7: JavaScript makes no difference."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
