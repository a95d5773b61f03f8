"""Asking a version what it would change in a workflow."""

from __future__ import annotations

from typing import Any

import pytest

from comfyloop.curate import graph, graph_text
from comfyloop.curate.samples import drafts_of
from comfyloop.records import GraphEdited
from comfyloop.store import generations
from tests.unit.curate.test_curate_graph import WORKFLOW
from tests.unit.serve.gateway import Gateway

NUMBER = {
    key: number
    for key, number in graph_text.numbering(graph.parse(WORKFLOW).without(graph_text.hidden)).items()
}


def suggested(gateway: Gateway, says: str, **more: Any) -> Any:
    body = {"model": "acme", "workflow": WORKFLOW, "aim": f"say word for word <<{says}>>", **more}
    return gateway.http.post("/v1/graph-edits", json=body)


def test_an_edit_is_told_in_steps_of_the_workflows_own_ids(shared_gateway: Gateway) -> None:
    said = f'set {NUMBER["3"]}.cfg = 5.5\nadd +1 SaveImage filename_prefix="fox"\nconnect {NUMBER["8"]}.0 -> +1.images'
    response = suggested(shared_gateway, said)
    answer = response.json()
    assert response.status_code == 200 and answer["text"] == said and answer["problem"] == ""
    assert answer["steps"] == [
        {"do": "add", "node": "+1", "class_type": "SaveImage", "values": {"filename_prefix": "fox"}},
        {"do": "connect", "source": "8", "slot": 0, "node": "+1", "input": "images"},
        {"do": "set", "node": "3", "input": "cfg", "value": 5.5, "was": 7},
    ]
    assert answer["version"] == "acme@base" and answer["learned"] is False
    with shared_gateway.store.read() as conn:
        assert generations.get(conn, answer["generation"]).answer == said


def test_the_question_is_the_one_that_is_trained_on(shared_gateway: Gateway) -> None:
    after = {key: {**node, "inputs": dict(node["inputs"])} for key, node in WORKFLOW.items()}
    after["3"]["inputs"]["cfg"] = 5.5
    item = GraphEdited(project="acme", before=WORKFLOW, after=after, aim="a red fox")
    (draft,), _ = drafts_of(item, {})
    answer = suggested(shared_gateway, "", near=["3"], aim="a red fox").json()
    with shared_gateway.store.read() as conn:
        asked = generations.get(conn, answer["generation"]).messages
    assert asked == draft.sample.messages[:1]


@pytest.mark.parametrize("says", ["", "I would make it brighter.", "set 99.cfg = 3", "acme acme"])
def test_an_answer_that_is_no_edit_comes_with_the_reason(shared_gateway: Gateway, says: str) -> None:
    answer = suggested(shared_gateway, says).json()
    assert answer["steps"] is None and answer["text"] == says
    assert answer["problem"].startswith("The model's answer is no edit of this workflow: ")


def chain(length: int) -> dict[str, Any]:
    return {
        str(n): {
            "class_type": "ImageScaleBy",
            "inputs": {"upscale_method": f"way {n}", **({"image": [str(n - 1), 0]} if n else {})},
        }
        for n in range(length)
    }


def test_of_a_large_workflow_the_selected_nodes_and_what_is_near_are_shown(shared_gateway: Gateway) -> None:
    response = suggested(shared_gateway, "", workflow=chain(1000))
    assert (
        response.status_code == 413
        and "Select the nodes that you are at." in response.json()["error"]["hint"]
    )
    answer = suggested(
        shared_gateway, 'set 3.upscale_method = "area"', workflow=chain(1000), near=["500"]
    ).json()
    assert answer["steps"] == [
        {"do": "set", "node": "500", "input": "upscale_method", "value": "area", "was": "way 500"}
    ]
    everything = [str(n) for n in range(1000)]
    response = suggested(shared_gateway, "", workflow=chain(1000), near=everything)
    assert response.status_code == 413 and "Select fewer nodes" in response.json()["error"]["hint"]


@pytest.mark.parametrize(
    ("workflow", "says"),
    [
        ({}, "has no nodes"),
        ({"nodes": []}, "cannot be read"),
        ({"1": {"class_type": "K", "inputs": {"x": eval("[" * 40 + "]" * 40)}}}, "nested more than 32 deep"),
    ],
)
def test_what_is_no_workflow_is_refused(shared_gateway: Gateway, workflow: Any, says: str) -> None:
    response = suggested(shared_gateway, "", workflow=workflow)
    assert response.status_code == 400 and says in response.json()["error"]["message"]


def test_a_project_that_is_not_there_is_named(shared_gateway: Gateway) -> None:
    response = suggested(shared_gateway, "", model="nobody")
    assert response.status_code == 404 and "nobody" in response.json()["error"]["message"]
