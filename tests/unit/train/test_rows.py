"""Every bad line is named with file, line and sample; nothing is replaced or repaired in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.errors import DataError, NotFound
from comfyloop.media.decoding import fit
from comfyloop.train.data.rows import read_rows, refuse_or_skip

GOOD = {
    "id": "s1",
    "messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}],
}


def answered(answer: object, question: object = "Why?", **more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": "bad1", "messages": messages, **more}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": [', "not JSON"),
        ("[1, 2]", "a JSON list, not an object"),
        (json.dumps({"id": "x"}), "neither messages nor a query"),
        (json.dumps(answered("  ")), "its answer is empty"),
        (json.dumps({"messages": [{"role": "user", "content": "Hi"}]}), "the user's, so there is no answer"),
        (json.dumps(answered("It.", "<image>W", images=["a", "b"])), "1 <image> tag and it names 2 images"),
        (json.dumps(answered("<image>", images=["a.png"])), "its answer has an <image> tag"),
        (json.dumps(answered(7)), "content of type int"),
        (json.dumps(answered(["a", {"b": 1}])), "a part of the type None"),
        (json.dumps({"messages": [{"role": "tool", "content": "x"}]}), "the role 'tool'"),
        (json.dumps({"messages": ["hello"]}), "message 1 is a str"),
        (json.dumps(answered("It.", images=7)), "one of its images is a int"),
        (json.dumps(answered("It.", "<image>", images=[3])), "one of its images is a int"),
        (json.dumps(answered("It.", rejected_response=[1])), "in its rejected answer, message 1 is a int"),
        (json.dumps(answered("It.", label="yes")), "its label is 'yes'"),
        (
            json.dumps({"instruction": "Sum it up.", "output": {"net": 57, "tax": None}}),
            "its output is an object",
        ),
        (
            json.dumps({"prompt": "Why?", "chosen": {"text": "So."}, "rejected": "No."}),
            "its chosen is an object",
        ),
        (json.dumps({"question": "Why?", "answer": "So.", "neg_answer": "No."}), "the key neg_answer, whose"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    rows, bad = read_rows(path)
    assert [row.id for row in rows] == ["s1"]
    assert [b.line for b in bad] == [2]
    assert reason in bad[0].reason
    with pytest.raises(DataError, match=r"1 of 2 rows .*train\.jsonl:2") as error:
        refuse_or_skip(path, len(rows), bad, skip=False, max_share=0.5)
    assert "skip_bad" in error.value.hint


def test_bad_lines_may_be_skipped_up_to_a_share(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text((json.dumps(GOOD) + "\n") * 9 + "oops\n")
    rows, bad = read_rows(path)
    refuse_or_skip(path, len(rows), bad, skip=True, max_share=0.1)
    with pytest.raises(DataError, match="more than the share of 5%"):
        refuse_or_skip(path, len(rows), bad, skip=True, max_share=0.05)


def test_old_role_names_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text(
        json.dumps({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]})
    )
    rows, bad = read_rows(path)
    assert not bad
    assert [(t.role, t.content) for t in rows[0].turns] == [("user", "Hi"), ("assistant", "Ho")]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no data file"):
        read_rows(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="has no rows"):
        read_rows(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{}\n{"a": "\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:2 is not UTF-8"):
        read_rows(tmp_path / "latin.jsonl")


@given(st.lists(st.text(max_size=40), max_size=6))
def test_reading_never_crashes_and_loses_no_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "any.jsonl"
    lines = [line.replace("\n", " ") for line in lines]
    path.write_bytes("\n".join([json.dumps(GOOD), *lines]).encode("utf-8", "replace"))
    rows, bad = read_rows(path)
    assert len(rows) + len(bad) == 1 + sum(
        1 for line in lines if line.encode("utf-8", "replace").decode().strip(" \t\r\ufeff")
    )


@given(st.integers(1, 40_000), st.integers(1, 40_000), st.integers(1, 10**7))
def test_fit_keeps_the_bound(width: int, height: int, most: int) -> None:
    w, h = fit(width, height, most)
    assert 1 <= w <= width
    assert 1 <= h <= height
    assert w * h <= most or 1 in (w, h)
