"""What is asked of an ms-swift run: every honest course passes, every dishonest one is named."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.errors import RunFailed
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.swift.arguments import Places, arguments
from comfyloop.train.swift.checks import SwiftProgress, check_run

HASHES = [f"{number:016x}" for number in range(40)]


def events(steps: list[list[str]], **begin: Any) -> list[dict[str, Any]]:
    told = [{"event": "begin", "step": 0, "total_steps": len(steps), "world_size": 1, **begin}]
    for number, rows in enumerate(steps, start=1):
        batch = {"rows": rows, "tokens": 10 * len(rows), "without_answer": 0}
        told.append({"event": "step", "step": number, "batches": [batch]})
        told.append({"event": "log", "step": number, "values": {"loss": 5.0 - 0.1 * number}})
    return told


def seen(told: list[dict[str, Any]]) -> SwiftProgress:
    course = SwiftProgress()
    for event in told:
        course.add(event)
    return course


def passes(rows: list[str], batch: int, epochs: int, shuffle: Any) -> list[list[str]]:
    steps = []
    for _ in range(epochs):
        order = list(rows)
        shuffle(order)
        steps += [order[i : i + batch] for i in range(0, len(order), batch)]
    return steps


honest = st.tuples(
    st.integers(2, 20), st.integers(1, 6), st.integers(1, 3), st.randoms(use_true_random=False)
)


@given(honest, st.data())
def test_every_honest_course_passes_and_every_replaced_row_is_found(
    course: tuple[int, int, int, Any], data: st.DataObject
) -> None:
    count, batch, epochs, random = course
    rows = HASHES[:count]
    if data.draw(st.booleans()):
        rows[1] = rows[0]  # the same row given twice may be used twice
    steps = passes(rows, batch, epochs, random.shuffle)
    assert f"every one of {count} rows" in check_run(seen(events(steps)), rows, {})
    step = data.draw(st.integers(0, len(steps) - 1))
    place = data.draw(st.integers(0, len(steps[step]) - 1))
    other = data.draw(st.sampled_from([*(r for r in rows if r != steps[step][place]), HASHES[-1]]))
    steps[step][place] = other
    with pytest.raises(RunFailed, match=r"twice in one pass|none of those given"):
        check_run(seen(events(steps)), rows, {})


def test_a_run_that_ends_within_a_pass_says_how_many_rows_it_used() -> None:
    assert check_run(seen(events([HASHES[:2], HASHES[2:4]])), HASHES[:9], {}).startswith("4 of 9 rows")


def test_the_row_that_was_replaced_is_named() -> None:
    names = {HASHES[0]: "the row on line 1", HASHES[1]: "the row on line 2"}
    with pytest.raises(RunFailed, match=r"the row on line 1 twice .* in the place of the row on line 2"):
        check_run(seen(events([[HASHES[0], HASHES[0]]])), HASHES[:2], names)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda told: told[0].update(world_size=2), "2 processes"),
        (lambda told: told.pop(1), "took 2 of 3 steps; step 1 is missing"),
        (lambda told: told.pop(2), "a loss for 2 of 3 steps"),
        (lambda told: told[1]["batches"][0].update(without_answer=1), "1 rows without an answer"),
        (lambda told: told[4]["values"].update(loss=float("nan")), "step 2 is no number"),
        (lambda told: [e["values"].update(loss=1.0) for e in told if "values" in e], "never moved"),
        (lambda told: told.clear(), "took 0 of 0 steps"),
    ],
)
def test_each_thing_that_ms_swift_hides_fails_the_run(spoil: Any, sentence: str) -> None:
    told = events([HASHES[:2], HASHES[2:4], HASHES[4:5]])
    spoil(told)
    course = seen(told)
    course.world_size = course.world_size or 1
    with pytest.raises(RunFailed, match=sentence):
        check_run(course, HASHES[:5], {})


def test_what_a_killed_process_did_past_its_checkpoint_does_not_count() -> None:
    steps = [HASHES[:2], HASHES[2:4], HASHES[4:5]]
    told = events(steps)
    again = [{"event": "begin", "step": 1, "total_steps": 3, "world_size": 1}, *told[3:]]
    assert "3 steps" in check_run(seen([*told[:5], *again]), HASHES[:5], {})


def test_a_spec_becomes_arguments(tmp_path: Any) -> None:
    spec = TrainSpec(model="/m", train="t.jsonl", holdout="h.jsonl", max_grad_norm=0.5)
    places = Places("/m", tmp_path / "t", tmp_path / "h", tmp_path / "out", init_from=tmp_path / "parent")
    words = arguments(
        spec, places, dtype="bfloat16", use_cpu=True, targets=["q_proj", "v_proj"], own="comfyloop"
    )
    pairs = dict(itertools.pairwise(words))
    for name, value in {
        "check_model": "false", "strict": "true", "bf16": "true", "fp16": "false", "lora_rank": "8",
        "max_grad_norm": "0.5", "adapters": str(tmp_path / "parent"), "eval_strategy": "steps",
        "gradient_accumulation_steps": "1", "max_steps": "-1",
    }.items():  # fmt: skip
        assert pairs[f"--{name}"] == value, name
    assert words[words.index("--target_modules") + 2] == "v_proj"
    assert "--resume_from_checkpoint" not in words
    regex = arguments(spec, places, dtype="float32", use_cpu=False, targets=r"a\.b", own="x")
    assert regex[regex.index("--target_regex") + 1] == r"a\.b"
