"""Captured edits that are corrections, and those that are another subject, or were taken back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.curate import graph, graph_text
from comfyloop.curate.corrections import is_correction, unsure
from comfyloop.curate.known import thread_drafts
from comfyloop.curate.samples import drafts_of
from comfyloop.records import Feedback, GraphEdited, PromptEdited
from comfyloop.settings import Settings


def edit(
    id: str, before: str, after: str, node: str = "2:CLIPTextEncode.text", author: str = "ann"
) -> Feedback:
    return PromptEdited(id=id, project="acme", author=author, before=before, after=after, node=node)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("portrait of an old man", "portrait of an old man in oil, soft light"),
        ("portrait of an old man", "oil portrait of a very old man"),
        ("a fox", "a red fox in snow"),
        ("一只红色的狐狸", "一只红色的狐狸在雪地里"),
        ("A Fox, snowy", "a fox; snowy, at dawn"),
    ],
)
def test_more_of_the_same_is_a_correction(before: str, after: str) -> None:
    assert is_correction(before, after) and not unsure([edit("fb_1", before, after)])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("portrait of an old man", "spaceship over Tokyo"),
        ("a fox in the snow", "a hen in the yard"),
        ("一只红色的狐狸", "东京上空的飞船"),
        ("a lighthouse in a storm, oil", "a bowl of fruit, oil"),
        ("", "a fox"),
    ],
)
def test_another_subject_is_none_unless_the_person_said_so_in_a_review(before: str, after: str) -> None:
    assert not is_correction(before, after)
    assert [lost.reason for lost in unsure([edit("fb_1", before, after)])] == ["another_subject"]
    assert not unsure([edit("fb_1", before, after, node="")])


def test_a_change_and_its_undo_cancel_whatever_lies_between() -> None:
    items = [
        edit("fb_1", "a fox", "a red fox"),
        edit("fb_2", "a red fox", "a red fox, dawn"),
        edit("fb_3", "a red fox, dawn", "a red fox"),
        edit("fb_4", "a red fox", "a fox", author="bob"),
    ]
    assert {lost.feedback: lost.reason for lost in unsure(items)} == {"fb_2": "undone", "fb_3": "undone"}
    before, after = (
        {"1": {"class_type": "A", "inputs": {"x": 1}}},
        {"1": {"class_type": "A", "inputs": {"x": 2}}},
    )
    graphs = [
        GraphEdited(id="fb_5", project="acme", before=before, after=after),
        GraphEdited(id="fb_6", project="acme", before=after, after=before),
        GraphEdited(id="fb_7", project="acme", before=before, after=after),
    ]
    assert {lost.feedback for lost in unsure(graphs)} == {"fb_5", "fb_6"}


@given(st.text(max_size=60))
def test_a_text_is_near_itself(text: str) -> None:
    assert is_correction(text, text) or not any(sign.isalnum() for sign in text)


def sampler(**values: Any) -> dict[str, Any]:
    return {"1": {"class_type": "KSampler", "inputs": {"cfg": 7, **values}}}


def test_edits_of_workflows_are_trained_on_only_where_that_is_asked_for() -> None:
    item = GraphEdited(id="fb_1", project="acme", before=sampler(), after=sampler(cfg=5))
    found, dropped = thread_drafts([item], {}, Settings())
    assert not found and [lost.reason for lost in dropped] == ["graph_edits_off"]
    found, dropped = thread_drafts([item], {}, Settings(learn_graph_edits=True))
    assert [draft.sample.answer for draft in found] == ["set 1.cfg = 5"] and not dropped


def chain(length: int) -> dict[str, Any]:
    nodes = {"0": {"class_type": "Load", "inputs": {"image": "x" * 5000}}}
    for n in range(1, length):
        nodes[str(n)] = {"class_type": "Blur", "inputs": {"radius": 1, "image": [str(n - 1), 0]}}
    return nodes


@pytest.mark.parametrize("length", [3, 61, 1000])
def test_an_edit_of_a_workflow_of_any_size_is_a_bounded_row(length: int) -> None:
    before, after = chain(length), chain(length)
    after[str(length // 2)]["inputs"]["radius"] = 2
    [draft], _ = drafts_of(
        GraphEdited(id="fb_1", project="acme", before=before, after=after, aim="softer"), {}
    )
    question = draft.sample.messages[0].text
    assert len(question) + len(draft.sample.answer) <= graph_text.LONGEST
    number, name = draft.sample.answer.removeprefix("set ").removesuffix(" = 2").split(".")
    assert name == "radius" and f"\n{number} Blur radius=1" in f"\n{question}"


@pytest.mark.parametrize(
    "after",
    [
        {str(n): {"class_type": "Other", "inputs": {"a": n}} for n in range(300)},
        {"0": {"class_type": "Load", "inputs": {"image": "y" * 9000}}},
    ],
    ids=["another workflow", "a value that is a file"],
)
def test_an_edit_that_is_no_row_for_any_model_is_left_out(after: dict[str, Any]) -> None:
    _, dropped = drafts_of(GraphEdited(id="fb_1", project="acme", before=chain(3), after=after), {})
    assert dropped is not None and dropped.reason == "large_edit"


@pytest.mark.parametrize("like", ["by ids", "renumbered"])
def test_large_workflows_are_matched_by_little_work(like: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: hashes grow with the workflow, where pairs of like nodes grew with its square."""
    from comfyloop.curate import graph_match

    made = 0
    hashed = graph_match._hash

    def count(text: str) -> str:
        nonlocal made
        made += 1
        return hashed(text)

    monkeypatch.setattr(graph_match, "_hash", count)
    before, after = chain(1000), chain(1000)
    after["500"]["inputs"]["radius"] = 2
    if like == "renumbered":
        after = {
            f"9{key}": {
                "class_type": node["class_type"],
                "inputs": {
                    n: [f"9{v[0]}", v[1]] if isinstance(v, list) else v for n, v in node["inputs"].items()
                },
            }
            for key, node in after.items()
        }
    change = graph.diff(graph.parse(before), graph.parse(after))
    assert len(change) == 1 and made < 40 * len(before)
    assert not graph.diff(graph.apply(graph.parse(before), change), graph.parse(after))
