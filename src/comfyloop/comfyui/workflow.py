"""A person's workflow made ready to draw one prompt by one version. Pure functions on ComfyUI's API form.

What is kept is what the picked pictures were made by: the nodes before the one from which they were picked. The
prompt takes the place of the text of the positive condition, all seeds become one, batches become one picture, and
the image LoRA is that of the version, whether the workflow wore the live one, a file of ours, or none.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from comfyloop.comfyui.link import pack_folder

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
    if wrong := malformed(workflow):
        raise Unusable(wrong)
    graph: Graph = copy.deepcopy(workflow)
    if unknown := sorted({node["class_type"] for node in graph.values()} - classes.keys()):
        raise Unusable(f"this ComfyUI has no node {unknown[0]}")
    shower = _shower(graph)
    source: list[Any] = graph[shower]["inputs"]["images"]
    _write(graph, classes, shower, prompt)
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


def malformed(workflow: Any) -> str:
    """Why a workflow is not in ComfyUI's API form, as the end of a sentence; empty where it is."""
    if not isinstance(workflow, dict) or not workflow:
        return "it is no JSON object with nodes in it"
    for key, node in workflow.items():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            return f"{key!r} in it has no class_type: it is not in ComfyUI's API form"
        if not isinstance(inputs, dict):
            return f"the node {key!r} in it has no inputs"
    return ""


def shown_text(graph: Graph, shower: str) -> str | None:
    """The text that the pictures of a node were made from, by the workflow alone; None where that does not tell."""
    text: str | None = _roles().text_of_picture(graph, shower, "images", lambda _: None).text
    return text


def _shower(graph: Graph) -> str:
    """The node at which the person picked, or saved."""
    for wanted in (PICKER, "SaveImage", "PreviewImage"):
        for key, node in graph.items():
            if node["class_type"] == wanted and _is_link(node["inputs"].get("images"), graph):
                return key
    raise Unusable("it shows no pictures")


@cache
def _roles() -> Any:
    """The node pack's own reading of workflows: one function tells there and here which text made a picture.

    The pack is no part of this package and is not run here: its folder alone is made known, under a name of ours.
    """
    pack = ModuleType("comfyloop_pack")
    pack.__path__ = [str(pack_folder())]
    sys.modules[pack.__name__] = pack
    return importlib.import_module("comfyloop_pack.roles")


def _write(graph: Graph, classes: Classes, shower: str, prompt: str) -> None:
    """Put the prompt in the place of the text that makes the pictures: where it is written, else at its encoder.

    Of an encoder with several texts (tags beside a sentence), all give way: what is judged is this prompt alone.
    """
    text = _roles().text_of_picture(graph, shower, "images", classes.get)
    encoders = {key for key, _ in text.encoders}
    if text.text is not None and text.holder is not None:
        places = text.places if text.places[0] not in text.encoders else text.encoders
    elif len(encoders) == 1:
        places = text.encoders
    else:
        why = text.why.rstrip(".") if text.text is None else "it is put together from several"
        told = f": {why[:1].lower()}{why[1:]}" if encoders else ""
        raise Unusable(f"it cannot be told from which text its pictures are made{told}")
    for key, name in places:
        graph[key]["inputs"][name] = prompt


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
