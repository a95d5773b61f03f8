"""Parts of the corrections: found by what they say of themselves and by what they are about."""

from __future__ import annotations

from typing import Any

from comfyloop.gate.slices import clusters, is_chinese, parts
from comfyloop.records import Message, Sample

MUGS = [f"Write a caption for a mug, number {n}." for n in range(8)]
CODE = [f"Why does my Python function number {n} raise an error?" for n in range(7)]


def sample(question: str, answer: str = "Yes.", **more: Any) -> Sample:
    told = {"group": question, "slice": "text"} | more
    messages = (Message.of("user", question), Message.of("assistant", answer))
    return Sample(id=question, project="acme", kind="sft", messages=messages, **told)


def test_questions_about_one_thing_are_a_part_with_a_name() -> None:
    found = clusters({question: question for question in [*MUGS, *CODE]})
    # more clusters than subjects may divide a subject, and must not mix two
    assert all(set(members) <= set(MUGS) or set(members) <= set(CODE) for members in found.values())
    assert sum(map(len, found.values())) == len(MUGS) + len(CODE)
    mugs = next(name for name, members in found.items() if set(members) <= set(MUGS))
    assert mugs.startswith("about ")


def test_the_order_of_questions_changes_no_part() -> None:
    questions = [*MUGS, *CODE, *(f"北京有什么好吃的{n}?" for n in range(6))]
    forward = clusters({question: question for question in questions})
    backward = clusters({question: question for question in reversed(questions)})
    assert {frozenset(m) for m in forward.values()} == {frozenset(m) for m in backward.values()}


def test_authors_languages_and_ages_are_parts_and_the_whole_is_none() -> None:
    samples = [
        *(sample(f"Q{n}?", author="ann") for n in range(6)),
        *(sample(f"水{n}?", "好的，很好。", author="bob") for n in range(6)),
    ]
    found = parts(samples)
    assert "text" not in found, "everything is no part"
    assert found["corrected by ann"] == {f"Q{n}?" for n in range(6)}
    # language and age divide these samples in the same way: told once
    assert sum(part == found["corrected by ann"] for part in found.values()) == 1
    assert all(len(part) >= 3 for part in found.values())


def test_a_slice_that_samples_name_is_measured_however_small() -> None:
    samples = [*(sample(f"Q{n}?") for n in range(6)), sample("What is shown?", slice="vision")]
    assert parts(samples)["vision"] == {"What is shown?"}


def test_nothing_and_nonsense_make_no_part() -> None:
    assert parts([]) == {} and clusters({}) == {}
    empty = clusters({str(n): "" for n in range(20)})
    assert sum(map(len, empty.values())) == 20
    same = {str(n): "the same question" for n in range(20)}
    assert sum(map(len, clusters(same).values())) == 20


def test_the_share_of_han_tells_chinese() -> None:
    assert is_chinese("水在多少度结冰?") and is_chinese("ComfyUI 怎么用，请告诉我")
    assert not is_chinese("What is 水 in English, please?") and not is_chinese("123 !?")
