"""Whether a suggested edit can be made, by what the nodes say of their inputs and outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from comfyui.suggest import check

DEFINED: dict[str, Any] = {
    "Loader": {
        "input": {"required": {"ckpt_name": (["a.safetensors", "b.safetensors"],)}},
        "output": ["MODEL", "VAE"],
    },
    "Sampler": {
        "input": {
            "required": {
                "model": ("MODEL",),
                "cfg": ("FLOAT", {"min": 0.0, "max": 100.0}),
                "steps": ("INT", {"min": 1, "max": 100}),
                "name": ("COMBO", {"options": ["euler", "dpm"]}),
            },
            "optional": {"mask": ("MASK",), "any": ("*",), "note": ("STRING", {}), "tiled": ("BOOLEAN", {})},
        },
        "output": ["LATENT"],
    },
    "Dynamic": {"input": {"required": {"model": ("COMFY_DYNAMICCOMBO_V3", {})}}, "output": ["LATENT,IMAGE"]},
    "Save": {"input": {"required": {"images": ("IMAGE",)}}, "output": []},
}
GRAPH: dict[str, Any] = {
    "1": {"class_type": "Loader", "inputs": {"ckpt_name": "a.safetensors"}},
    "2": {
        "class_type": "Sampler",
        "inputs": {"model": ["1", 0], "cfg": 7.0, "steps": 20, "name": "euler"},
    },
    "3": {"class_type": "Dynamic", "inputs": {"model": "x", "model.prompt": "a fox"}},
    "4": {"class_type": "Save", "inputs": {"images": ["3", 0]}},
}


def set_(node: str, name: str, value: Any) -> dict[str, Any]:
    return {"do": "set", "node": node, "input": name, "value": value}


def connect(source: str, slot: int, node: str, name: str) -> dict[str, Any]:
    return {"do": "connect", "source": source, "slot": slot, "node": node, "input": name}


ADD = {"do": "add", "node": "+1", "class_type": "Sampler", "values": {"cfg": 5, "steps": 4, "name": "dpm"}}


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [set_("2", "cfg", 5), set_("2", "steps", 30.0), set_("2", "name", "dpm")],
        [set_("1", "ckpt_name", "b.safetensors"), set_("2", "tiled", True), set_("2", "note", "")],
        [set_("3", "model.prompt", "a dog"), set_("3", "model", "y")],
        [ADD, connect("1", 0, "+1", "model")],
        [connect("1", 1, "2", "any"), connect("3", 0, "4", "images")],
        [{"do": "remove", "node": "4"}],
        [ADD, connect("1", 0, "+1", "model"), {"do": "remove", "node": "2"}],
        [{"do": "unset", "node": "3", "input": "model.prompt"}],
    ],
)
def test_what_the_nodes_allow_can_be_done(steps: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(GRAPH)
    check(GRAPH, steps, DEFINED.get)
    assert before == GRAPH


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([set_("9", "cfg", 5)], "no node 9"),
        ([set_("2", "cfg", 101)], "cfg of Sampler cannot be 101: it goes from 0.0 to 100.0"),
        ([set_("2", "cfg", "high")], "it is no number"),
        ([set_("2", "cfg", True)], "it is no number"),
        ([set_("2", "steps", 4.5)], "it is no whole number"),
        ([set_("2", "name", "magic")], "it is none of the choices"),
        ([set_("1", "ckpt_name", "c.safetensors")], "it is none of the choices"),
        ([set_("2", "tiled", "yes")], "it is true or false"),
        ([set_("2", "note", 4)], "it is a text"),
        ([set_("2", "model", "a.safetensors")], "it takes a link"),
        ([set_("2", "sigma", 1)], "Sampler has no input 'sigma'"),
        ([set_("3", "model.seed", 1)], "Dynamic has no input 'model.seed'"),
        ([{"do": "add", "node": "+1", "class_type": "Magic", "values": {}}], "no node class 'Magic' here"),
        ([ADD], "Sampler would have nothing at model"),
        ([connect("1", 2, "2", "model")], "Loader has no output 2"),
        ([connect("1", 1, "2", "model")], "model of Sampler takes MODEL, not VAE"),
        ([connect("9", 0, "2", "model")], "no node 9"),
        ([connect("1", 0, "2", "modle")], "Sampler has no input 'modle'"),
        ([{"do": "disconnect", "node": "2", "input": "model"}], "Sampler would have nothing at model"),
        ([{"do": "remove", "node": "1"}], "Sampler would have nothing at model"),
        ([{"do": "remove", "node": "1"}, connect("1", 0, "2", "model")], "no node 1"),
    ],
)
def test_what_they_do_not_allow_is_said(steps: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check(GRAPH, steps, DEFINED.get)


def test_a_workflow_that_lacked_something_before_may_be_edited() -> None:
    graph = copy.deepcopy(GRAPH)
    del graph["2"]["inputs"]["model"]
    check(graph, [set_("2", "cfg", 5)], DEFINED.get)
    graph["5"] = {"class_type": "NotHere", "inputs": {"x": ["1", 0]}}
    check(graph, [set_("5", "x", 1)], DEFINED.get)
