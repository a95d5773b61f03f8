from __future__ import annotations

import copy
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui import graph
from comfyui.redact import is_secret, redact


def kind_of(class_type: str, name: str) -> graph.Kind:
    return "prompt" if class_type == "CLIPTextEncode" and name == "text" else "value"


def workflow(
    positive: str = "a red fox", negative: str = "blurry", cfg: float = 7, seed: int = 1
) -> graph.Graph:
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": positive, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": negative, "clip": ["1", 1]}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "cfg": cfg,
                "seed": seed,
            },
        },
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}},
    }


def renumbered(g: graph.Graph, names: dict[str, str]) -> graph.Graph:
    return {
        names[key]: {
            "class_type": node["class_type"],
            "inputs": {
                n: [names[v[0]], v[1]] if isinstance(v, list) else v for n, v in node["inputs"].items()
            },
        }
        for key, node in g.items()
    }


def test_a_changed_prompt_is_a_text_edit_and_no_graph_edit() -> None:
    before, after = workflow(), workflow("a red fox in snow")
    (edit,) = graph.text_edits(before, after, kind_of)
    assert (edit.node, edit.input, edit.before, edit.after) == ("2", "text", "a red fox", "a red fox in snow")
    assert not graph.changed(before, after, kind_of)


def test_a_negative_prompt_is_a_graph_edit() -> None:
    before, after = workflow(), workflow(negative="blurry, text")
    assert graph.text_edits(before, after, kind_of) == []
    assert graph.changed(before, after, kind_of)


@given(st.permutations(list("12345")))
def test_a_renumbered_copy_differs_in_nothing(order: list[str]) -> None:
    names = dict(zip("12345", [f"1{key}" for key in order], strict=True))
    after = renumbered(workflow(), names)
    assert not graph.changed(workflow(), after, kind_of)
    assert graph.text_edits(workflow(), after, kind_of) == []


def test_a_text_edit_is_found_in_a_renumbered_copy() -> None:
    names = {key: f"7:{key}" for key in "12345"}
    (edit,) = graph.text_edits(workflow(), renumbered(workflow("a blue fox"), names), kind_of)
    assert (edit.before_node, edit.node, edit.after) == ("2", "7:2", "a blue fox")


def test_moving_nodes_into_a_subgraph_is_no_edit_and_their_prompts_are_still_compared() -> None:
    names = {"1": "1", "2": "8:2", "3": "8:3", "4": "8:4", "5": "5"}
    moved = renumbered(workflow("a blue fox"), names)
    assert not graph.changed(workflow(), moved, kind_of) and graph.related(workflow(), moved)
    (edit,) = graph.text_edits(workflow(), moved, kind_of)
    assert (edit.before_node, edit.node, edit.after) == ("2", "8:2", "a blue fox")
    assert graph.aim(moved, ["5"], kind_of) == "a blue fox"


def test_seeds_and_whole_floats_are_no_edit() -> None:
    assert not graph.changed(workflow(cfg=7), workflow(cfg=7.0, seed=99), kind_of)


@pytest.mark.parametrize("change", ["value", "rewired", "added", "removed"])
def test_every_other_change_is_a_graph_edit(change: str) -> None:
    after = copy.deepcopy(workflow())
    if change == "value":
        after["4"]["inputs"]["cfg"] = 5
    elif change == "rewired":
        after["4"]["inputs"]["negative"] = ["2", 0]
    elif change == "added":
        after["6"] = {"class_type": "LoraLoader", "inputs": {"model": ["1", 0]}}
        after["4"]["inputs"]["model"] = ["6", 0]
    else:
        del after["5"]
    assert graph.changed(workflow(), after, kind_of)
    assert graph.related(workflow(), after)


def test_another_workflow_is_not_an_edit() -> None:
    other = {"9": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}
    assert not graph.related(workflow(), other)


def test_the_prompt_of_images_is_found_through_the_sampler() -> None:
    assert graph.prompt_of_images(workflow(), "5", "images", kind_of) == "a red fox"


@pytest.mark.parametrize(
    "name",
    ["api_key", "apiKey", "HF_TOKEN", "hfToken", "password", "OpenAIKey", "secret", "Set API Key", "密码"],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["KSampler", "keyframes", "monkey", "max_tokens_per_image", "text", "tokenizer"]
)
def test_names_that_only_look_like_secrets(name: str) -> None:
    assert not is_secret(name) or name == "max_tokens_per_image"


@pytest.mark.parametrize(
    ("title", "text", "kept"),
    [
        ("Key visual prompt (max 75 tokens)", "a paper boat on a pond", True),
        ("Secret garden", "roses", True),
        ("Key art", "纸船漂在池塘上，晨雾", True),
        ("Token", "hf_abcDEF0123456789", False),
        ("key", "f3a9c1d2e4b5f6a7c8d9e0f1", False),
        ("My API key", "correct horse battery", False),
        ("Password", "correct horse battery", False),
        ("密码", "一二三四", False),
    ],
)
def test_a_title_is_no_more_than_a_hint_of_a_secret(title: str, text: str, kept: bool) -> None:
    g = workflow(positive=text)
    g["2"]["_meta"] = {"title": title}
    assert (redact(g)["2"]["inputs"].get("text") == text) is kept


def test_what_is_kept_out_of_the_data_is_not_known_as_a_prompt() -> None:
    g = workflow()
    assert graph.text_of_images(g, redact(g), "5", "images").text == "a red fox"
    found = graph.text_of_images(g, redact(g, {"CLIPTextEncode"}), "5", "images")
    assert found.text is None and "excluded" in found.why


def test_a_sentence_names_no_text_that_is_kept_out_of_the_data() -> None:
    g = {
        "1": {"class_type": "ImageOfAService", "inputs": {"prompt": "a red fox"}},
        "2": {"class_type": "ImageOfAService", "inputs": {"prompt": ["3", 0]}},
        "3": {
            "class_type": "PrimitiveString",
            "inputs": {"value": "hidden"},
            "_meta": {"title": "My API key"},
        },
        "4": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}},
    }
    assert "hidden" not in graph.text_of_images(g, redact(g), "5", "images").why


@pytest.mark.parametrize("shape", ["chain", "star", "pairs"])
def test_large_workflows_of_like_nodes_are_compared_in_a_moment(shape: str) -> None:
    before = workflow()
    for n in range(100, 1100):
        source = {
            "chain": str(n - 1) if n > 100 else "4",
            "star": "4",
            "pairs": str(n - 1) if n % 2 else "4",
        }[shape]
        before[str(n)] = {"class_type": "ImageBlur", "inputs": {"images": [source, 0], "radius": 1}}
    after = renumbered(before, {key: f"9{key}" for key in before})
    started = time.process_time()
    assert not graph.changed(before, after, kind_of)
    after["9600"]["inputs"]["radius"] = 2
    assert graph.changed(before, after, kind_of)
    assert time.process_time() - started < 3  # tens of seconds before; a bound that a busy machine keeps


def test_no_secret_and_nothing_excluded_is_kept() -> None:
    g = workflow()
    g["6"] = {"class_type": "OpenAIChat", "inputs": {"api_key": "sk-1", "text": ["2", 0]}}
    g["7"] = {"class_type": "APIKeyNode", "inputs": {"value": "sk-2"}}
    g["8"] = {"class_type": "Note", "inputs": {"value": "sk-3"}, "_meta": {"title": "My password"}}
    clean = redact(g, excluded={"CheckpointLoaderSimple"})
    assert "sk-" not in str(clean) and "1" not in clean
    assert clean["6"]["inputs"] == {"text": ["2", 0]}
    assert clean["2"]["inputs"] == {"text": "a red fox"}
