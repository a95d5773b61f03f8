"""What encoders heard: arrived texts, what nodes made of them, and what a cached node had heard."""

from __future__ import annotations

from typing import Any

from comfyui.hear import LONGEST, Hearing, signatures
from comfyui.roles import text_of_picture

GRAPH: dict[str, Any] = {
    "1": {"class_type": "Wildcards", "inputs": {"text": "a {red|blue} fox", "seed": 3}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": ["1", 0], "clip": ["9", 0]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["9", 0]}},
    "4": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "negative": ["3", 0]}},
    "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}},
    "9": {"class_type": "CLIPLoader", "inputs": {"clip_name": "c"}},
}


def run(hearing: Hearing, prompt: str, node: str, encoded: tuple[str, ...] = (), **arrived: Any) -> None:
    token = hearing.begin(prompt, node, {name: [value] for name, value in arrived.items()})
    for text in encoded:
        hearing.encoded(text)
    hearing.end(token)


def prompt_in(hearing: Hearing, prompt: str, graph: dict[str, Any]) -> str | None:
    return text_of_picture(graph, "5", "images", lambda _: None, hearing.of(prompt)).text


def test_a_wildcards_outcome_is_heard_where_it_is_encoded() -> None:
    hearing = Hearing({"p": GRAPH}.get)
    run(hearing, "p", "2", ("a blue fox",), text="a blue fox", clip=object())
    run(hearing, "p", "3", ("blurry",), text="blurry")
    assert hearing.of("p") == {("2", "text"): "a blue fox", ("3", "text"): "blurry"}
    assert prompt_in(hearing, "p", GRAPH) == "a blue fox"


def test_a_cached_encoder_heard_what_it_heard_when_it_ran() -> None:
    later = {**GRAPH, "4": {"class_type": "KSampler", "inputs": {**GRAPH["4"]["inputs"], "steps": 8}}}
    renumbered = {("7" if key == "2" else key): node for key, node in GRAPH.items()}
    renumbered["4"] = {"class_type": "KSampler", "inputs": {"positive": ["7", 0], "negative": ["3", 0]}}
    changed = {**GRAPH, "1": {"class_type": "Wildcards", "inputs": {"text": "a {red|blue} fox", "seed": 4}}}
    hearing = Hearing({"p": GRAPH, "later": later, "renumbered": renumbered, "changed": changed}.get)
    run(hearing, "p", "2", text="a blue fox")
    assert prompt_in(hearing, "later", later) == "a blue fox"
    assert hearing.of("renumbered") == {("7", "text"): "a blue fox"}
    assert hearing.of("changed") == {} and prompt_in(hearing, "changed", changed) is None


def test_what_a_node_made_of_its_text_inside_counts_and_what_stands_around_it_does_not() -> None:
    graph = {
        **GRAPH,
        "2": {"class_type": "Encoder", "inputs": {"text": "a {red|blue} fox", "clip": ["9", 0]}},
    }
    hearing = Hearing({"p": graph, "q": graph}.get)
    run(hearing, "p", "2", ("a red fox",), text="a {red|blue} fox")
    assert prompt_in(hearing, "p", graph) == "a red fox"
    run(hearing, "q", "2", ("<|user|>a {red|blue} fox<|end|>",), text="a {red|blue} fox")
    assert prompt_in(hearing, "q", graph) == "a {red|blue} fox"
    run(hearing, "p", "2", ("a red", "fox"), text="a {red|blue} fox")
    assert prompt_in(hearing, "p", graph) is None


def test_several_texts_and_one_too_long_are_not_one_prompt() -> None:
    hearing = Hearing({"p": GRAPH}.get)
    hearing.end(hearing.begin("p", "2", {"text": ["a fox", "a hen"]}))
    assert hearing.of("p") == {("2", "text"): None} and prompt_in(hearing, "p", GRAPH) is None
    hearing.end(hearing.begin("p", "2", {"text": ["x" * (LONGEST + 1)], "steps": [4], "ids": []}))
    assert hearing.of("p") == {("2", "text"): None}


def test_what_is_remembered_is_bounded() -> None:
    hearing = Hearing(lambda _: None)
    for number in range(200):
        run(hearing, str(number), "2", text="a fox")
    assert hearing.of("3") == {} and hearing.of("199")


def test_signatures_of_a_long_chain_and_of_a_circle() -> None:
    chain = {str(n): {"class_type": "A", "inputs": {"in": [str(n - 1), 0]}} for n in range(1, 3000)}
    chain["0"] = {"class_type": "A", "inputs": {}}
    assert len(set(signatures(chain).values())) == 3000
    circle = {
        "1": {"class_type": "A", "inputs": {"in": ["2", 0]}},
        "2": {"class_type": "A", "inputs": {"in": ["1", 0]}},
    }
    assert signatures(circle) == {}
