"""ms-swift rows: what is written is read back, its other forms are understood, bad lines are named."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.curate import feedback_from, made_of, read_samples, strip, unsayable
from comfyloop.curate.pictures import picked_drafts
from comfyloop.curate.rows import dump_rows, row_of
from comfyloop.curate.samples import Source, make
from comfyloop.errors import DataError, NotFound, StorageError
from comfyloop.formats import Row, read_whole
from comfyloop.records import ImagePart, ImagePicked, Message, Sample, TextPart

SOURCE = Source("acme", ("fb_1",), "answer_edited", "ada")

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
texts |= st.lists(st.sampled_from(["<image>", "\u2028", "\x85", "\r", "<video>", "a "])).map("".join)
said = texts.map(lambda text: f"{text}.")
hashes = st.sampled_from([letter * 64 for letter in "abc"])


@st.composite
def messages(draw: st.DrawFn) -> tuple[Message, ...]:
    turns = []
    if draw(st.booleans()):
        turns.append(Message.of("system", draw(texts)))
    for _ in range(draw(st.integers(1, 2))):
        parts = draw(
            st.lists(texts.map(lambda t: TextPart(text=t)) | hashes.map(lambda h: ImagePart(sha256=h)))
        )
        turns.append(Message(role="user", content=tuple(parts)))
        turns.append(Message.of("assistant", draw(said)))
    return tuple(turns)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    kind = draw(st.sampled_from(["sft", "preference", "labelled", "image_pair", "captioned_image"]))
    if kind in ("image_pair", "captioned_image"):
        over = draw(hashes) if kind == "image_pair" else None
        return make(kind, [Message.of("user", draw(said))], SOURCE, picked=draw(hashes), over=over)
    turns = draw(messages())
    rejected = (
        draw(said.filter(lambda t: t.strip() != turns[-1].text.strip())) if kind == "preference" else None
    )
    label = draw(st.booleans()) if kind == "labelled" else None
    return make(
        kind, turns, SOURCE, rejected=rejected, label=label, slice=draw(st.sampled_from(["text", "x"]))
    )


@given(st.lists(samples(), max_size=6))
def test_written_samples_are_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, made: list[Sample]
) -> None:
    file = tmp_path_factory.mktemp("rows") / "train.jsonl"
    file.write_text(
        dump_rows([row_of(sample, lambda sha: f"images/{sha}.png") for sample in made]), encoding="utf-8"
    )
    assert read_samples(file, "acme") == made


@given(st.lists(samples(), max_size=6))
def test_every_line_is_one_json_object_with_a_tag_an_image(made: list[Sample]) -> None:
    lines = dump_rows([row_of(sample, str, extra=False) for sample in made]).split("\n")
    assert lines.pop() == ""
    rows = [json.loads(line) for line in lines]
    assert len(rows) == len(made)
    assert len({"images" in row for row in rows}) <= 1
    for row in rows:
        parts = [m["content"] for m in row["messages"]]
        tags = sum(
            c.count("<image>") if isinstance(c, str) else sum(p["type"] == "image" for p in c) for c in parts
        )
        assert tags == len(row.get("images", ())) or not row.get("images")


def test_rows_of_pictures_of_older_snapshots_are_read_and_taken_back(tmp_path: Path) -> None:
    """They have `picked` and `over` where rows have `chosen` and `rejected` today."""
    pair = make("image_pair", [Message.of("user", "a fox")], SOURCE, picked="a" * 64, over="b" * 64)
    row = row_of(pair, lambda sha: f"images/{sha}.png")
    old = {"chosen": "picked", "rejected": "over"}
    file = tmp_path / "train.image_pair.jsonl"
    file.write_text(dump_rows([{old.get(key, key): value for key, value in row.items()}]))
    assert '"picked"' in file.read_text() and '"over"' in file.read_text()
    assert read_samples(file, "acme") == [pair]
    (tmp_path / "images").mkdir()
    for sha in ("a" * 64, "b" * 64):
        (tmp_path / "images" / f"{sha}.png").touch()
    assert made_of(tmp_path, ["fb_1"]) == ({pair.id}, {"a" * 64, "b" * 64})
    strip(tmp_path, ["fb_1"])
    assert not file.read_text() and not list((tmp_path / "images").iterdir())


def test_a_changed_row_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "holdout.jsonl"
    turns = [Message.of("user", "Hi"), Message.of("assistant", "Hello")]
    file.write_text(dump_rows([row_of(make("sft", turns, SOURCE), str)]), encoding="utf-8")
    file.write_text(file.read_text().replace("Hello", "Goodbye"))
    with pytest.raises(DataError, match=r"holdout.jsonl:1: the row was changed"):
        read_samples(file, "acme")


def read_rows(file: Path) -> list[Row]:
    return read_whole(file, "").good


ALIKE = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"messages": [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Hello"}], "label": None},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"conversation": [{"human": "Hi", "assistant": "Hello"}]},
    {"query": "Hi", "response": "Hello", "history": []},
    {"instruction": "Hi", "input": "", "output": "Hello"},
    {"instruction": "", "input": "Hi", "output": "Hello", "images": []},
]


@pytest.mark.parametrize("row", ALIKE)
def test_all_forms_of_a_row_say_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(row) + "\n\n")
    assert [said_in(r) for r in read_rows(file)] == [(("user", "Hi"), ("assistant", "Hello"))]


def test_system_history_rejected_and_label_are_read(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    old = {
        "system": "Be kind.",
        "query": "B?",
        "response": "b",
        "history": [["A?", "a"]],
        "rejected_response": "c",
    }
    new = {
        "messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "a"}],
        "label": False,
    }
    file.write_text(json.dumps([old, new]))
    first, second = read_rows(file)
    turns = [("system", "Be kind."), ("user", "A?"), ("assistant", "a"), ("user", "B?"), ("assistant", "b")]
    assert (said_in(first), first.rejected) == (tuple(turns), "c")
    assert second.label is False


def said_in(row: Row) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, turn.text) for turn in row.turns)


def chat(*turns: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


BAD = [
    ("{broken", "not JSON"),
    ("[1]", "a JSON list, not an object"),
    ("{}", "neither messages nor a query"),
    (chat(), "its messages are no list"),
    (chat(("user", "Hi")), "its last message is the user's"),
    (chat(("user", "Hi"), ("assistant", " ")), "its answer is empty"),
    (chat(("user", "Hi"), ("wizard", "Hello")), "message 2 has the role 'wizard'"),
    (chat(("user", "Hi"), ("assistant", 3)), "message 2 has a content of type int, not text"),
    (
        chat(("user", "<image><image>"), ("assistant", "x"), images=["a.png"]),
        "no picture for tag 2 (message 1)",
    ),
    (chat(("user", "<image>"), ("assistant", "x"), images=["a.png", "b.png"]), "no <image> tag for b.png"),
    (chat(("user", "<image>"), ("assistant", "x"), images=["http://a/b.png"]), "is a web address"),
    (chat(("user", "<image>"), ("assistant", "x"), images=[3]), "one of its images is a int"),
    (chat(("user", "Hi"), ("assistant", "x"), images=7), "one of its images is a int"),
    (
        chat(("user", "Hi"), ("assistant", "x"), rejected_response="x "),
        "its rejected answer is the same as its answer",
    ),
    (
        chat(("user", "Hi"), ("assistant", "x"), rejected_response=["y", "z"]),
        "rejected answer is a list of 2 texts",
    ),
    (chat(("user", "Hi"), ("assistant", "x"), label="yes"), "its label is 'yes', not true or false"),
    (chat(("user", "Hi"), ("assistant", "x"), videos=["a.mp4"]), "it has videos, which cannot be trained on"),
    ({"messages": "Hi"}, "its messages are no list"),
    ({"query": "Hi", "response": "x", "history": [["a"]]}, "its history is no list"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, row: Any, reason: str) -> None:
    file = tmp_path / "data.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    file.write_text(json.dumps(ALIKE[0]) + "\n\n" + line + "\n")
    with pytest.raises(DataError) as caught:
        read_rows(file)
    assert "data.jsonl:3: " in str(caught.value) and reason in str(caught.value)


def test_all_bad_lines_are_named_at_once_up_to_twenty(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("{}\n" * 25 + json.dumps(ALIKE[0]))
    with pytest.raises(DataError, match=r"(?s)25 of 26 rows.*jsonl:20:.*and 5 more"):
        read_rows(file)


def test_a_file_that_is_no_text_or_not_there_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json.dumps(ALIKE[0]).encode() + b"\n\xff\xfe")
    with pytest.raises(DataError, match=r"a.jsonl:2 is not UTF-8"):
        read_rows(tmp_path / "a.jsonl")
    with pytest.raises(NotFound, match="no data file"):
        read_rows(tmp_path / "b.jsonl")


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(StorageError, match="no file but a pipe"):
            read_rows(path)


def test_a_persons_box_goes_from_a_pick_into_the_row_and_comes_back(tmp_path: Path) -> None:
    pick = ImagePicked(
        id="fb_1", project="acme", picked=("a" * 64,), over=("b" * 64,), prompt="a mug", crop=(1, 2, 30, 40)
    )
    drafts, _ = picked_drafts(pick, {})
    whole, _ = picked_drafts(pick.model_copy(update={"crop": None}), {})
    made = [draft.sample for draft in drafts]
    assert {sample.id for sample in made}.isdisjoint(draft.sample.id for draft in whole)
    rows = [row_of(sample, lambda sha: f"images/{sha}.png") for sample in made]
    assert [row["crop"] for row in rows] == [[1, 2, 30, 40]] * 2
    file = tmp_path / "train.captioned_image.jsonl"
    file.write_text(dump_rows(rows), "utf-8")
    assert read_samples(file, "acme") == made
    (read, _) = read_whole(file, "").good
    assert feedback_from(read, "acme", "bob", {str(read.chosen_image): "a" * 64}).crop == (1, 2, 30, 40)  # type: ignore[union-attr]
    crooked = replace(read, extra={**read.extra, "crop": [9, 2, 3, 40]})
    assert unsayable(read) == "" and "no box" in unsayable(crooked)
