"""A person's workflow made ready to draw one prompt by one version. Pure functions on ComfyUI's API form.

What is kept is what the picked pictures were made by: the nodes before the one from which they were picked. The
prompt takes the place of the text of the positive condition, all seeds become one, batches become one picture, and
the image LoRA is that of the version, whether the workflow wore the live one, a file of ours, or none.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Graph = dict[str, Any]
Classes = Mapping[str, Any]
"""What ComfyUI's ``/object_info`` says of each class of nodes."""

PICKER, LORA = "ComfyLoopPickImages", "ComfyLoopLiveLora"
FOLDER = "comfyloop"
"""Where our LoRA files lie below ComfyUI's."""


class Unusable(Exception):
    """Why a workflow cannot draw, as the end of a sentence."""


def ready(workflow: Graph, classes: Classes, prompt: str, seed: int, version: str) -> tuple[Graph, str]:
    """The graph to queue, and the node whose output is the picture.

    Args:
        version: As in model names: "acme@17", "acme@base".

    Raises:
        Unusable: It shows no pictures, or it cannot be told which text they are made from.
    """
    graph: Graph = copy.deepcopy(workflow)
    if unknown := sorted({node["class_type"] for node in graph.values()} - classes.keys()):
        raise Unusable(f"this ComfyUI has no node {unknown[0]}")
    source = _pictures(graph)
    _write(graph, classes, _text_node(graph, classes, source[0]), prompt)
    for node in graph.values():
        inputs = node["inputs"]
        inputs |= {name: seed for name in ("seed", "noise_seed") if name in inputs}
        if isinstance(inputs.get("batch_size"), int):
            inputs["batch_size"] = 1
    _wear(graph, classes, version)
    needed = {key for key, _ in _upstream(graph, source[0])}
    shown = f"{FOLDER}-shown"
    kept = {key: node for key, node in graph.items() if key in needed}
    kept[shown] = {"class_type": "PreviewImage", "inputs": {"images": source}}
    return kept, shown


def _pictures(graph: Graph) -> list[Any]:
    """The output from which the person picked, or which they saved."""
    for wanted in (PICKER, "SaveImage", "PreviewImage"):
        for node in graph.values():
            if node["class_type"] == wanted and _is_link(node["inputs"].get("images"), graph):
                source: list[Any] = node["inputs"]["images"]
                return source
    raise Unusable("it shows no pictures")


def _text_node(graph: Graph, classes: Classes, pictures: str) -> str:
    """The node with the text that makes the positive condition of the nearest sampler."""
    for _, node in _upstream(graph, pictures):
        if _is_link(positive := node["inputs"].get("positive"), graph):
            for key, candidate in _upstream(graph, positive[0]):
                if _texts(candidate["class_type"], classes) & candidate["inputs"].keys():
                    return key
    raise Unusable("it cannot be told from which text its pictures are made")


def _texts(class_type: str, classes: Classes) -> set[str]:
    """The inputs of a class that hold prompts; those of our own nodes hold questions."""
    if class_type.startswith("ComfyLoop"):
        return set()
    return {
        name
        for part in classes[class_type]["input"].values()
        for name, spec in (part.items() if isinstance(part, dict) else ())
        if spec[0] == "STRING" and len(spec) > 1 and spec[1].get("multiline")
    }


def _write(graph: Graph, classes: Classes, key: str, prompt: str) -> None:
    node = graph[key]
    node["inputs"] |= {name: prompt for name in _texts(node["class_type"], classes) if name in node["inputs"]}


def _wear(graph: Graph, classes: Classes, version: str) -> None:
    """Have the version's LoRA in the place of ours, or right behind the model where there is none."""
    ours = [key for key, node in graph.items() if node["class_type"] == LORA or _is_our_file(node)]
    for key in ours:
        inputs = graph[key]["inputs"]
        strength = inputs.get("strength", inputs.get("strength_model", 1.0))
        links = {name: inputs[name] for name in ("model", "clip") if name in inputs}
        graph[key] = {
            "class_type": LORA,
            "inputs": {**links, "project": version, "strength": strength},
        }
    if ours:
        return
    for key in list(graph):
        told = classes[graph[key]["class_type"]]
        takes = [
            spec[0] for part in told["input"].values() if isinstance(part, dict) for spec in part.values()
        ]
        if "MODEL" not in told["output"] or "MODEL" in takes:
            continue
        worn, outputs = f"{FOLDER}-{key}", list(told["output"])
        slots = {
            outputs.index(kind): place for place, kind in enumerate(("MODEL", "CLIP")) if kind in outputs
        }
        for node in graph.values():
            for name, value in node["inputs"].items():
                if _is_link(value, graph) and value[0] == key and value[1] in slots:
                    node["inputs"][name] = [worn, slots[value[1]]]
        links = {("model", "clip")[place]: [key, slot] for slot, place in slots.items()}
        graph[worn] = {"class_type": LORA, "inputs": {**links, "project": version, "strength": 1.0}}


def _is_our_file(node: Mapping[str, Any]) -> bool:
    name = node["inputs"].get("lora_name")
    loads = node["class_type"] in ("LoraLoader", "LoraLoaderModelOnly")
    return loads and isinstance(name, str) and name.replace("\\", "/").startswith(f"{FOLDER}/")


def _upstream(graph: Graph, start: str) -> Iterator[tuple[str, Any]]:
    """A node and what it is made from, the nearest first."""
    edge, seen = [start], {start}
    while edge:
        key = edge.pop(0)
        yield key, graph[key]
        for value in graph[key]["inputs"].values():
            if _is_link(value, graph) and value[0] not in seen:
                seen.add(value[0])
                edge.append(value[0])


def _is_link(value: Any, graph: Graph) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in graph
