"""The workflow diff: empty for renumbered copies, and what it says makes one workflow of the other."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyloop.curate import graph, graph_read, graph_text
from comfyloop.curate.workflow import Workflow

WORKFLOW: dict[str, Any] = {
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5,
            "steps": 20,
            "cfg": 7.0,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
}


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, Any]:
    """Acyclic workflows with few classes and values, so that many nodes look alike."""
    size = draw(st.integers(0, 9))
    made: dict[str, Any] = {}
    for number in range(size):
        inputs: dict[str, Any] = {}
        for name in draw(st.lists(st.sampled_from("abc"), unique=True)):
            if number and draw(st.booleans()):
                inputs[name] = [str(draw(st.integers(0, number - 1))), draw(st.integers(0, 1))]
            else:
                inputs[name] = draw(st.sampled_from([1, 2.5, "x", True, None, ["1", "2"]]))
        made[str(number)] = {"class_type": draw(st.sampled_from(["K", "L"])), "inputs": inputs}
    return made


def renumbered(api: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same workflow with its ids dealt out anew and its nodes in another order."""
    dealt = random.Random(seed)
    ids = list(api)
    names = dict(zip(ids, dealt.sample([str(n) for n in range(len(ids) + 3)], len(ids)), strict=True))
    dealt.shuffle(ids)

    def renamed(value: Any) -> Any:
        is_link = isinstance(value, list) and value[0] in names and isinstance(value[1], int)
        return [names[value[0]], value[1]] if is_link else value

    return {
        names[key]: {
            "class_type": api[key]["class_type"],
            "inputs": {name: renamed(value) for name, value in api[key]["inputs"].items()},
        }
        for key in ids
    }


@given(workflows(), st.integers(0, 10_000))
def test_a_renumbered_copy_differs_in_nothing(api: dict[str, Any], seed: int) -> None:
    change = graph.diff(graph.parse(api), graph.parse(renumbered(api, seed)))
    assert not change, change


@given(workflows(), workflows())
def test_the_difference_applied_gives_the_other_workflow(one: dict[str, Any], other: dict[str, Any]) -> None:
    before, after = graph.parse(one), graph.parse(other)
    made = graph.apply(before, graph.diff(before, after))
    assert not graph.diff(made, after)
    assert len(made.nodes) == len(after.nodes)


@given(workflows(), st.integers(0, 10_000))
def test_a_renumbered_copy_reads_the_same_when_its_nodes_can_be_told_apart(
    api: dict[str, Any], seed: int
) -> None:
    for number, node in enumerate(api.values()):
        node["inputs"]["name"] = f"node {number}"
    one, other = graph.parse(api), graph.parse(renumbered(api, seed))
    assert graph_text.render(one) == graph_text.render(other)


def test_two_like_chains_in_one_workflow_are_not_mixed_up() -> None:
    # Equal nodes in separate chains: pairing them one by one would cross the links.
    chain = {
        f"{name}{end}": {"class_type": kind, "inputs": inputs}
        for name in ("x", "y", "z")
        for end, kind, inputs in (("1", "A", {}), ("2", "B", {"in": [f"{name}1", 0]}))
    }
    assert not graph.diff(graph.parse(chain), graph.parse(renumbered(chain, 1)))


def ring(name: str, length: int) -> dict[str, Any]:
    nodes: dict[str, Any] = {f"{name}s{i}": {"class_type": "S", "inputs": {}} for i in range(length)}
    for i in range(length):
        links = {"left": [f"{name}s{i}", 0], "right": [f"{name}s{(i + 1) % length}", 0]}
        nodes[f"{name}t{i}"] = {"class_type": "T", "inputs": links}
    return nodes


def test_rings_that_colours_cannot_tell_apart_are_matched_by_trying() -> None:
    api = ring("a", 6) | ring("b", 3) | ring("c", 3)
    for seed in range(5):
        assert not graph.diff(graph.parse(api), graph.parse(renumbered(api, seed)))
    others = ring("a", 4) | ring("b", 4) | ring("c", 4)
    assert graph.diff(graph.parse(api), graph.parse(others))


def test_an_edit_is_exactly_what_was_done() -> None:
    after = {key: {**node, "inputs": dict(node["inputs"])} for key, node in WORKFLOW.items()}
    after["12"] = {"class_type": "LoraLoader", "inputs": {"lora_name": "ink", "model": ["4", 0]}}
    after["3"]["inputs"] |= {"model": ["12", 0], "cfg": 5.5}
    before = graph.parse(WORKFLOW)
    change = graph.diff(before, graph.parse(after))
    assert list(change.added) == ["+12"]
    assert change.removed == frozenset()
    assert change.connected == {("4", 0, "+12", "model"), ("+12", 0, "3", "model")}
    assert change.disconnected == {("4", 0, "3", "model")}
    assert change.changed == (("3", "cfg", "7", "5.5"),)


def test_an_edit_of_a_renumbered_workflow_is_still_small() -> None:
    after = renumbered(WORKFLOW, 3)
    sampler = next(node for node in after.values() if node["class_type"] == "KSampler")
    sampler["inputs"]["steps"] = 30
    change = graph.diff(graph.parse(WORKFLOW), graph.parse(after))
    assert change.changed == (("3", "steps", "20", "30"),)
    assert len(change) == 1


def test_an_edit_as_text() -> None:
    after = {key: {**node, "inputs": dict(node["inputs"])} for key, node in WORKFLOW.items() if key != "7"}
    after["3"]["inputs"] |= {"cfg": 5.5, "negative": ["6", 0]}
    after["9"] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "fox"}}
    del after["5"]["inputs"]["batch_size"]
    before = graph.parse(WORKFLOW).without(graph_text.hidden)
    change = graph.diff(before, graph.parse(after).without(graph_text.hidden))
    number = {line.split()[1]: line.split()[0] for line in graph_text.render(before).splitlines()}
    sampler, decode, latent = number["KSampler"], number["VAEDecode"], number["EmptyLatentImage"]
    lines = graph_text.render(before).splitlines()
    fox = next(line.split()[0] for line in lines if "a red fox" in line)
    blurry = next(line.split()[0] for line in lines if "blurry" in line)
    said = graph_text.describe(before, change).splitlines()
    assert said[:2] == [f"remove {blurry}", 'add +1 SaveImage filename_prefix="fox"']
    assert sorted(said[2:]) == sorted(
        [
            f"connect {fox}.0 -> {sampler}.negative",
            f"connect {decode}.0 -> +1.images",
            f"unset {latent}.batch_size",
            f"set {sampler}.cfg = 5.5",
        ]
    )


def test_seeds_and_secrets_never_reach_the_text() -> None:
    api = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 12345, "max_tokens": 7}},
        "2": {
            "class_type": "SaveToCloud",
            "inputs": {"api_key": "abc123", "authToken": "t0k3n", "path": "out"},
        },
        "3": {"class_type": "ApiKeyHolder", "inputs": {"value": "hunter2"}},
    }
    text = graph_text.render(graph.parse(api).without(graph_text.hidden))
    assert "max_tokens=7" in text and 'path="out"' in text
    assert not any(secret in text for secret in ("12345", "abc123", "t0k3n", "hunter2"))


@pytest.mark.parametrize(
    "node", [[], {"inputs": {}}, {"class_type": 3}, {"class_type": "K", "inputs": []}, None]
)
def test_what_is_no_workflow_is_named(node: Any) -> None:
    with pytest.raises(ValueError, match="node 7 has no class_type"):
        graph.parse({"7": node})


@settings(deadline=None)
@given(st.integers(0, 50))
def test_a_workflow_of_many_like_nodes_is_matched_in_time(seed: int) -> None:
    api = {str(n): {"class_type": "Note", "inputs": {"text": str(n % 3)}} for n in range(60)}
    assert not graph.diff(graph.parse(api), graph.parse(renumbered(api, seed)))


@given(workflows(), workflows())
def test_an_edit_is_read_as_it_was_written(one: dict[str, Any], other: dict[str, Any]) -> None:
    before, after = graph.parse(one), graph.parse(other)
    change = graph.diff(before, after)
    if not change or len(change) > graph.MOST_STEPS:
        return
    read = graph_read.read(before, graph_text.describe(before, change))
    assert not graph.diff(graph.apply(before, read), after)
    assert read.removed == change.removed and len(read) == len(change)


WRITTEN = """```
remove {blurry}
add +1 KSampler (Efficient) cfg=5.5 lora name="a=b c" widths=[1, 2]
connect {fox}.0 -> {sampler}.negative
connect +1.0 -> {decode}.samples
set {sampler}.steps = 30.0
```"""


def numbers(before: Workflow) -> dict[str, str]:
    names = {"3": "sampler", "5": "latent", "6": "fox", "7": "blurry", "8": "decode"}
    return {names[key]: number for key, number in graph_text.numbering(before).items() if key in names}


def test_an_edit_of_a_model_is_told_in_steps_of_the_workflows_own_ids() -> None:
    before = graph.parse(WORKFLOW).without(graph_text.hidden)
    change = graph_read.read(before, WRITTEN.format(**numbers(before)))
    assert graph_read.steps(before, change) == [
        {"do": "remove", "node": "7"},
        {
            "do": "add",
            "node": "+1",
            "class_type": "KSampler (Efficient)",
            "values": {"cfg": 5.5, "lora name": "a=b c", "widths": [1, 2]},
        },
        {"do": "connect", "source": "+1", "slot": 0, "node": "8", "input": "samples"},
        {"do": "connect", "source": "6", "slot": 0, "node": "3", "input": "negative"},
        {"do": "set", "node": "3", "input": "steps", "value": 30, "was": 20},
    ]


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("", "it is empty"),
        ("Sure! You could raise cfg.", "there is no step"),
        ("set 99.cfg = 5", "there is no node 99"),
        ("set {sampler}.seed = 5", "seed is not for a model to set"),
        ("set {sampler}.cfg = very high", "the value of cfg cannot be read"),
        ("set {sampler}.steps = 20", "it changes nothing"),
        ("remove {fox}\nconnect {fox}.0 -> {sampler}.positive", "there is no node"),
        ("disconnect {fox}.text", "nothing is connected to text"),
        ("connect {decode}.0 -> {latent}.width", "in a circle"),
        ("set {sampler}.cfg = " + "[" * 100_000, "the value of cfg cannot be read"),
        ("set {sampler}.cfg = NaN", "the value of cfg cannot be read"),
        ("set {sampler}.cfg = [1e999]", "the value of cfg cannot be read"),
        ("add +1 Save width=1e999", "the value of width cannot be read"),
        ("add +1 Save\nadd +1 Save", "there is a node \\+1 already"),
        ('add +1 Cloud api_key="x"', "api_key is not for a model to set"),
        ('add +1 Save name="x" and then some', "is no name and value"),
        ("set {sampler}.cfg = 1\n" * 41, "41 steps"),
    ],
)
def test_what_is_no_edit_of_the_workflow_is_refused_in_words(written: str, why: str) -> None:
    before = graph.parse(WORKFLOW).without(graph_text.hidden)
    with pytest.raises(ValueError, match=why):
        graph_read.read(before, written.format(**numbers(before)))
