"""A stored workflow made ready to draw for the gate: the prompt, the seed and the version in their places."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from comfyloop.comfyui.workflow import Unusable, ready


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def told(output: list[str], **inputs: Any) -> dict[str, Any]:
    return {"input": {"required": inputs}, "output": output}


TEXT = ["STRING", {"multiline": True}]
CLASSES = {
    "CheckpointLoaderSimple": told(["MODEL", "CLIP", "VAE"], ckpt_name=[["a.safetensors"]]),
    "LoraLoader": told(["MODEL", "CLIP"], model=["MODEL"], clip=["CLIP"], lora_name=[["x"]]),
    "CLIPTextEncode": told(["CONDITIONING"], text=TEXT, clip=["CLIP"]),
    "Guidance": told(["CONDITIONING"], conditioning=["CONDITIONING"]),
    "KSampler": told(["LATENT"], model=["MODEL"], positive=["CONDITIONING"], negative=["CONDITIONING"], seed=["INT"]),
    "EmptyLatentImage": told(["LATENT"], batch_size=["INT"]),
    "VAEDecode": told(["IMAGE"], samples=["LATENT"], vae=["VAE"]),
    "SaveImage": told([], images=["IMAGE"]),
    "PreviewImage": told([], images=["IMAGE"]),
    "ComfyLoopPickImages": told(["IMAGE"], images=["IMAGE"]),
    "ComfyLoopWritePrompt": told(["STRING"], brief=TEXT),
    "ComfyLoopLiveLora": told(["MODEL", "CLIP", "STRING"], model=["MODEL"], clip=["CLIP"], project=["STRING"]),
}  # fmt: skip

PAINTER = {
    "1": node("ComfyLoopWritePrompt", brief="a pillow", seed=4),
    "2": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
    "3": node("ComfyLoopLiveLora", model=["2", 0], clip=["2", 1], project="", strength=0.8),
    "4": node("CLIPTextEncode", text=["1", 0], clip=["3", 1]),
    "5": node("Guidance", conditioning=["4", 0]),
    "6": node("CLIPTextEncode", text="blurry", clip=["3", 1]),
    "7": node("EmptyLatentImage", width=512, batch_size=4),
    "8": node(
        "KSampler", model=["3", 0], positive=["5", 0], negative=["6", 0], latent_image=["7", 0], seed=9
    ),
    "9": node("VAEDecode", samples=["8", 0], vae=["2", 2]),
    "10": node("ComfyLoopPickImages", images=["9", 0], mode="pause"),
    "11": node("SaveImage", images=["10", 0], filename_prefix="poster"),
}


def test_a_painters_workflow_draws_one_prompt_and_saves_nothing() -> None:
    before = copy.deepcopy(PAINTER)
    graph, shown = ready(PAINTER, CLASSES, "a linen pillow", 77, "acme@17")
    assert before == PAINTER
    assert graph.keys() == {*"23456789", shown}
    assert graph["4"]["inputs"]["text"] == "a linen pillow" and graph["6"]["inputs"]["text"] == "blurry"
    assert graph["8"]["inputs"]["seed"] == 77 and graph["7"]["inputs"] == {"width": 512, "batch_size": 1}
    assert graph["3"]["inputs"] == {
        "model": ["2", 0],
        "clip": ["2", 1],
        "project": "acme@17",
        "strength": 0.8,
    }
    assert graph[shown] == node("PreviewImage", images=["9", 0])


def test_the_lora_is_put_behind_the_model_where_the_workflow_wears_none() -> None:
    plain = copy.deepcopy(PAINTER)
    del plain["3"]
    for key in ("4", "6"):
        plain[key]["inputs"]["clip"] = ["2", 1]
    plain["8"]["inputs"]["model"] = ["2", 0]
    graph, _ = ready(plain, CLASSES, "x", 1, "acme@base")
    [worn] = [key for key, found in graph.items() if found["class_type"] == "ComfyLoopLiveLora"]
    assert graph[worn]["inputs"] == {
        "model": ["2", 0],
        "clip": ["2", 1],
        "project": "acme@base",
        "strength": 1.0,
    }
    assert graph["8"]["inputs"]["model"] == [worn, 0] and graph["4"]["inputs"]["clip"] == [worn, 1]
    assert graph["9"]["inputs"]["vae"] == ["2", 2]


def test_a_file_of_ours_gives_way_to_the_version_and_others_stay() -> None:
    worn = copy.deepcopy(PAINTER)
    ours = {"lora_name": "comfyloop/acme-v3.safetensors", "strength_model": 0.5, "strength_clip": 1}
    worn["3"] = node("LoraLoader", model=["12", 0], clip=["12", 1], **ours)
    worn["12"] = node("LoraLoader", model=["2", 0], clip=["2", 1], lora_name="detail.safetensors")
    graph, _ = ready(worn, CLASSES, "x", 1, "acme@4")
    assert graph["3"] == node(
        "ComfyLoopLiveLora", model=["12", 0], clip=["12", 1], project="acme@4", strength=0.5
    )
    assert graph["12"] == worn["12"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"10": node("SaveImage"), "11": node("SaveImage")}, "shows no pictures"),
        ({"8": node("Guidance", conditioning=["4", 0])}, "from which text"),
        ({"4": node("Guidance"), "5": node("Guidance")}, "from which text"),
        ({"5": node("TheirNode", conditioning=["4", 0])}, "has no node TheirNode"),
    ],
)
def test_what_cannot_be_told_is_said(change: dict[str, Any], why: str) -> None:
    with pytest.raises(Unusable, match=why):
        ready({**PAINTER, **change}, CLASSES, "x", 1, "acme@1")
