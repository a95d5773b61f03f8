"""A row that is read at one door is read at every door, to the same record; what no door understands is named.

What a row means is drawn first, then a form in which data sets write it, and a file to put it into.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from comfyloop import formats
from comfyloop.cli import single_run
from comfyloop.curate import Unkept
from comfyloop.errors import ComfyLoopError
from comfyloop.formats.pictures import LISTS
from comfyloop.formats.query_response import QUERY, RESPONSE
from comfyloop.train.data.rows import read_rows
from comfyloop.train.image import rows as image_rows
from comfyloop.train.specs.text import TrainSpec
from tests.unit.formats.doors import DOORS, IMAGE_DOORS, Told, by_image_trainer, by_trainer

TAG = "<image>"
COLOURS = ("red", "lime", "blue")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for colour in COLOURS:
        Image.new("RGB", (8, 8), colour).save(folder / f"{colour}.png")
    return [folder / f"{colour}.png" for colour in COLOURS]


def sha(picture: Path) -> str:
    return hashlib.sha256(picture.read_bytes()).hexdigest()


# --- what a row means ---------------------------------------------------------------------------------------

letters = st.characters(codec="utf-8", exclude_characters="\0<")
texts = st.text(letters, max_size=12) | st.sampled_from(["\u2028", "\x85", "\r\n", "猫 🦉", '"{[', " "])
seen = texts.map(lambda text: f"{text}?")
answers = texts.map(lambda text: f"{text}.")
Parts = tuple[str | int, ...]  # a number is a picture


@dataclass(frozen=True)
class Meant:
    system: str
    turns: tuple[tuple[Parts, str], ...]
    rejected: str | None
    label: bool | None

    @property
    def pictures(self) -> list[int]:
        return [part for asked, _ in self.turns for part in asked if isinstance(part, int)]

    @property
    def quotes(self) -> bool:
        """Whether a tag is text in it."""
        said = [
            *(p for asked, _ in self.turns for p in asked if isinstance(p, str)),
            *(a for _, a in self.turns),
        ]
        return bool(self.pictures) and any(TAG in text for text in said)

    def told(self, files: list[Path]) -> Told:
        turns: list[Any] = [("system", [self.system])] if self.system else []
        for asked, answer in self.turns:
            turns.append(("user", joined([None if isinstance(part, int) else part for part in asked])))
            turns.append(("assistant", [answer]))
        return turns, [sha(files[number]) for number in self.pictures], self.rejected, self.label


def joined(parts: list[str | None]) -> list[str | None]:
    made: list[str | None] = []
    for part in parts:
        if part is not None and made and made[-1] is not None:
            made[-1] += part
        else:
            made.append(part)
    return made


@st.composite
def meanings(draw: st.DrawFn) -> Meant:
    quoting = seen | st.just(f"Is {TAG} a tag?") if draw(st.booleans()) else seen
    asked = st.lists(quoting | st.sampled_from(range(len(COLOURS))), min_size=1, max_size=3).map(tuple)
    if draw(st.booleans()):  # plain texts, which are all that some forms can say
        asked = st.tuples(seen)
    turns = tuple(draw(st.lists(st.tuples(asked, answers), min_size=1, max_size=2)))
    judged = draw(st.sampled_from(["", "", "pair", "label"]))
    others = answers.filter(lambda text: text.strip() != turns[-1][1].strip())
    rejected = draw(others) if judged == "pair" else None
    label = draw(st.booleans()) if judged == "label" else None
    return Meant(draw(seen | st.just("")), turns, rejected, label)


# --- the forms in which data sets write it ------------------------------------------------------------------


class Writing:
    """Writes a meaning as a row, drawing what its form leaves open."""

    def __init__(self, draw: st.DrawFn, meant: Meant, files: list[Path]) -> None:
        self.draw, self.meant, self.files = draw, meant, files
        self.row: dict[str, Any] = {}
        self.roles = draw(
            st.sampled_from([("system", "user", "assistant"), ("system", "human", "gpt"),
                             ("developer", "User", "bot"), ("system", "user", "model")])
        )  # fmt: skip

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def image(self, number: int) -> str:
        file = self.files[number]
        inline = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
        return str(self.one_of(str(file), f"file://{file}", inline))

    def message(self, role: int, content: Any, keys: tuple[str, str]) -> dict[str, Any]:
        return {keys[0]: self.roles[role], keys[1]: content}

    def listed(self, *, parts: bool, keys: tuple[str, str] = ("role", "content")) -> list[dict[str, Any]]:
        """All messages; pictures as parts, or as tags with a list beside them."""
        inside = self.meant.system and self.draw(st.booleans())
        made = [self.message(0, self.meant.system, keys)] if inside else []
        for asked, answer in self.meant.turns:
            told: Any = self.parts(asked) if parts else self.tagged(asked)
            made.append(self.message(1, told, keys))
            text = self.part(answer)
            made.append(self.message(2, self.one_of([text], text) if parts else answer, keys))
        if self.meant.system and not inside:
            self.row[self.one_of("system", "system_prompt")] = self.meant.system
        return made

    def parts(self, asked: Parts) -> list[dict[str, Any]]:
        return [self.part(part) for part in asked]

    def part(self, part: str | int) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": self.one_of("text", "input_text", "output_text"), "text": part}
        source = self.image(part)
        return dict(
            self.one_of({"type": "image", "image": source}, {"type": "image_url", "image_url": {"url": source}},
                        {"type": "input_image", "image_url": source}, {"type": "image", "path": source})
        )  # fmt: skip

    def tagged(self, asked: Parts) -> str:
        self.row.setdefault("images", []).extend(self.image(part) for part in asked if isinstance(part, int))
        return "".join(TAG if isinstance(part, int) else part for part in asked)

    def rename_images(self) -> None:
        images = self.row.pop("images", None)
        if images:
            key = self.one_of("images", "image", "image_path", "image_paths")
            self.row[key] = images[0] if len(images) == 1 and self.draw(st.booleans()) else images

    def judge(self, answered: Callable[[str], Any]) -> None:
        """The rejected answer or the label beside the wanted one."""
        if self.meant.label is not None:
            self.row[self.one_of("label", "kto_tag")] = self.meant.label
        if self.meant.rejected is not None:
            key = self.one_of("rejected_response", "rejected", "rejected_messages")
            self.row[key] = answered(self.meant.rejected)

    def answered(self, text: str) -> Any:
        """An answer in any of its forms."""
        message = {"role": self.roles[2], "content": text}
        return self.one_of(text, message, [message])


def as_messages(writing: Writing) -> None:
    writing.row["messages"] = writing.listed(parts=writing.meant.quotes or writing.draw(st.booleans()))
    writing.judge(writing.answered)


def as_conversations(writing: Writing) -> None:
    writing.row["conversations"] = writing.listed(parts=False, keys=("from", "value"))
    writing.judge(writing.answered)


def as_conversation(writing: Writing) -> None:
    pairs = [
        {
            writing.one_of("user", "human"): writing.tagged(asked),
            writing.one_of("assistant", "gpt", "bot"): answer,
        }
        for asked, answer in writing.meant.turns
    ]
    if writing.meant.system:
        pairs[0] = {"system": writing.meant.system, **pairs[0]}
    writing.row["conversation"] = pairs
    writing.judge(writing.answered)


def _with_history(writing: Writing) -> None:
    before = [[writing.tagged(asked), answer] for asked, answer in writing.meant.turns[:-1]]
    if before or writing.draw(st.booleans()):
        writing.row["history"] = before
    if writing.meant.system:
        writing.row[writing.one_of("system", "system_prompt")] = writing.meant.system


def _answer_or_pair(writing: Writing, answer_keys: tuple[str, ...]) -> None:
    answer = writing.meant.turns[-1][1]
    if writing.meant.rejected is not None and writing.draw(st.booleans()):
        writing.row["chosen"] = writing.answered(answer)
        writing.row["rejected"] = writing.answered(writing.meant.rejected)
    else:
        writing.row[writing.one_of(*answer_keys)] = writing.answered(answer)
        writing.judge(writing.answered)
    if writing.meant.label is not None and not {"label", "kto_tag"} & writing.row.keys():
        writing.row["label"] = writing.meant.label


def as_query_response(writing: Writing) -> None:
    _with_history(writing)
    writing.row[writing.one_of("query", "prompt", "question", "problem")] = writing.tagged(
        writing.meant.turns[-1][0]
    )
    _answer_or_pair(writing, ("response", "answer", "target", "completion"))


def as_alpaca(writing: Writing) -> None:
    _with_history(writing)
    asked = writing.tagged(writing.meant.turns[-1][0])
    first, cut, rest = asked.partition("\n")
    if cut and first and rest:
        writing.row |= {"instruction": first, "input": rest}
    else:
        writing.row |= writing.one_of(
            {"instruction": asked, "input": ""}, {"instruction": asked}, {"instruction": "", "input": asked}
        )
    _answer_or_pair(writing, ("output",))


def as_trl(writing: Writing) -> None:
    *prompt, answer = writing.listed(parts=writing.meant.quotes or writing.draw(st.booleans()))
    if writing.meant.rejected is not None:
        rejected = [{"role": writing.roles[2], "content": writing.meant.rejected}]
        if writing.draw(st.booleans()):  # the prompt is repeated in both
            writing.row |= {"chosen": [*prompt, answer], "rejected": [*prompt, *rejected]}
        else:
            writing.row |= {"prompt": prompt, "chosen": [answer], "rejected": rejected}
        return
    writing.row |= {"prompt": prompt, "completion": [answer]}
    writing.judge(writing.answered)


FORMS = (as_messages, as_conversations, as_conversation, as_query_response, as_alpaca, as_trl)
IN_PARTS = (as_messages, as_trl)
"""Forms in which a tag can be text beside a picture."""


def write(draw: st.DrawFn, meant: Meant, files: list[Path]) -> dict[str, Any]:
    form = draw(st.sampled_from(IN_PARTS if meant.quotes else FORMS))
    writing = Writing(draw, meant, files)
    form(writing)
    if writing.row.get("images") == []:
        del writing.row["images"]
    writing.rename_images()
    return writing.row


def put(draw: st.DrawFn, rows: list[dict[str, Any]], folder: Path) -> Path:
    """A file of these rows, as lines, as an array, or one after the other over many lines."""
    ascii_only = draw(st.booleans())
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    text = draw(st.sampled_from([
        "\n".join(lines), "\r\n".join(lines) + "\r\n", "\ufeff" + "\n\n".join(lines),
        json.dumps(rows, ensure_ascii=ascii_only), json.dumps(rows, indent=1),
        "\n".join(json.dumps(row, indent=2) for row in rows),
    ]))  # fmt: skip
    file = folder / draw(st.sampled_from(["rows.jsonl", "rows.json", "rows.data"]))
    file.write_bytes(text.encode())
    return file


def door_folder(folder: Path, door: str) -> Path:
    place = folder / door.replace(" ", "-")
    place.mkdir()
    return place


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_form_it_is_written_in_a_row_is_the_same_record_at_every_door(
    data: st.DataObject, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    meant = data.draw(st.lists(meanings(), min_size=1, max_size=3))
    folder = tmp_path_factory.mktemp("rows")
    file = put(data.draw, [write(data.draw, one, pictures) for one in meant], folder)
    expected = [one.told(pictures) for one in meant]
    for name, door in DOORS.items():
        assert door(file, door_folder(folder, name)) == expected, name


# --- rows of pictures ---------------------------------------------------------------------------------------


@st.composite
def picture_rows(draw: st.DrawFn, files: list[Path]) -> tuple[dict[str, Any], Told]:
    prompt = draw(answers)
    chosen, other = draw(st.permutations(range(len(files))).map(lambda order: order[:2]))
    rejected = draw(st.sampled_from([None, other]))
    names = draw(st.sampled_from([("chosen", "rejected"), ("picked", "over")]))

    def named(number: int) -> Any:
        file = files[number]
        inline = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
        return draw(
            st.sampled_from([str(file), {"path": str(file)}, {"image": str(file)}, f"file://{file}", inline])
        )

    row: dict[str, Any] = draw(st.sampled_from([
        {"messages": [{"role": "user", "content": prompt}]}, {"prompt": prompt}, {"query": prompt},
        {"conversations": [{"from": "human", "value": prompt}]}, {"instruction": prompt},
    ]))  # fmt: skip
    row = {**row, names[0]: named(chosen)}
    if rejected is not None:
        row[names[1]] = named(rejected)
    other_sha = sha(files[rejected]) if rejected is not None else None
    return row, (" ".join(prompt.split()), sha(files[chosen]), other_sha)


@settings(max_examples=60)
@given(data=st.data())
def test_rows_of_pictures_are_the_same_record_at_every_door_of_pictures(
    data: st.DataObject, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    drawn = data.draw(st.lists(picture_rows(pictures), min_size=1, max_size=3))
    folder = tmp_path_factory.mktemp("rows")
    file = put(data.draw, [row for row, _ in drawn], folder)
    for name, door in IMAGE_DOORS.items():
        assert door(file, door_folder(folder, name)) == [told for _, told in drawn], name
    _, bad = read_rows(file)  # and no run of the language model passes over what it cannot learn
    assert len(bad) == len(drawn) and all("names a picture that was kept" in one.reason for one in bad)


def lines(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_answers_that_end_like_a_picture_are_told_from_pictures(tmp_path: Path, pictures: list[Path]) -> None:
    texts = [("It is owl.png", "I see none"), ("none", "owl.png"), ("Look:\nowl.png", "Look:\ncat.png")]
    file = lines(tmp_path, *({"prompt": "Which?", "chosen": a, "rejected": b} for a, b in texts))
    assert [(turns[-1][1], rejected) for turns, _, rejected, _ in by_trainer(file, tmp_path)] == [
        ([a], b) for a, b in texts
    ]
    _, bad = image_rows.read_rows(file, pairs=False, max_image_pixels=100)
    assert [one.reason for one in bad] == ["it has no picture under 'chosen'"] * 3
    doubtful = lines(tmp_path, {"prompt": "Which?", "chosen": "owl.png", "rejected": "cat.png"})
    _, (named,) = read_rows(doubtful)
    assert "answers that look like file names are written as messages and rejected_response" in named.reason


def test_a_kept_picture_of_a_written_prompt_is_read_with_its_brief(
    tmp_path: Path, pictures: list[Path]
) -> None:
    """As snapshots have written such rows since before `chosen` was the name."""
    brief = [
        {"role": "user", "content": f"{TAG}Another of these"},
        {"role": "assistant", "content": "a red square"},
    ]
    row = {
        "id": "p1",
        "messages": brief,
        "images": [str(pictures[1])],
        "picked": str(pictures[0]),
        "kind": "x",
    }
    file = lines(tmp_path, row)
    assert by_image_trainer(file, tmp_path) == [("a red square", sha(pictures[0]), None)]
    assert IMAGE_DOORS["joint"](file, door_folder(tmp_path, "joint")) == by_image_trainer(file, tmp_path)
    again = json.loads((tmp_path / "joint" / "image" / "train.jsonl").read_text())
    assert again == {"id": "p1", "messages": brief, "images": [str(pictures[1])], "chosen": str(pictures[0])}
    with pytest.raises(ComfyLoopError, match="more than the prompt: leave out the conversation"):
        IMAGE_DOORS["import"](file, door_folder(tmp_path, "import"))


BAD_PICTURES = [
    ({"prompt": "a", "chosen": "a.png", "picked": "b.png"}, "it has both chosen and picked"),
    ({"prompt": "a", "over": "a.png"}, "it has no picture under 'chosen'"),
    ({"prompt": "a", "picked": 3}, "it has no picture under 'picked'"),
    ({"prompt": "a", "chosen": {"path": "https://a.example/b.png"}}, "is a web address"),
    ({"prompt": "a", "chosen": "a\0.png"}, "characters that no file's name has: a\\x00.png"),
    ({"prompt": "a", "chosen": "a fox"}, "no rejected one (a chosen picture is a file that ends in .png"),
    ({"prompt": "a"}, "no answer to learn, and no picture under 'chosen'"),
    (
        {"prompt": "a", "chosen": "gone.png", "chosen_mask": 1},
        "the key chosen_mask, whose meaning would be lost",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BAD_PICTURES)
def test_a_row_of_pictures_that_cannot_be_used_is_named_at_every_door(
    row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    file = lines(tmp_path, row)
    for read in (
        lambda: read_rows(file)[1],
        lambda: image_rows.read_rows(file, pairs=False, max_image_pixels=100)[1],
    ):
        (bad,) = read()
        assert bad.line == 1 and reason in bad.reason
    for name in ("import", "from-swift", "joint"):
        with pytest.raises(ComfyLoopError, match=r"rows.jsonl:1") as caught:
            IMAGE_DOORS[name](file, door_folder(tmp_path, name))
        assert reason in str(caught.value)


# --- what no door understands -------------------------------------------------------------------------------

KNOWN = {
    "messages", "conversations", "conversation", "system", "system_prompt", "chosen", "rejected", "rejected_response",
    "rejected_messages", "label", "kto_tag", "picked", "over", "input", "history", *QUERY, *RESPONSE, *LISTS,
    "id", "kind", "slice", "group", "replay", "part", "origin", "author", "feedback",  # a snapshot's own
}  # fmt: skip


@given(
    key=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda key: key not in KNOWN)
)
@example(key="reward")
@example(key="image_mask")
@example(key="tools")
def test_a_key_that_no_door_understands_is_named_at_every_door(
    key: str, tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    row = {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "a"}], key: ["x"]}
    file = lines(folder, row)
    spec = TrainSpec(model="m", train="t")

    def image_trainer(note: Callable[[str], object]) -> list[formats.BadRow]:
        of_pictures = lines(folder, {"prompt": "a", "picked": str(pictures[0]), key: ["x"]})
        return image_rows.read_rows(of_pictures, pairs=False, max_image_pixels=100, note=note)[1]

    doors: list[Callable[[Callable[[str], object]], Any]] = [
        lambda note: read_rows(file, note)[1],
        lambda note: single_run.prepare(folder, spec, [str(file)], [], note=note),
        lambda note: [*map(note, unkept(file).sentences())],
        image_trainer,
    ]
    for door in doors:
        said: list[str] = []
        try:
            bad = door(said.append)
        except ComfyLoopError as error:
            said.append(error.message)
        else:
            said += (
                [one.reason for one in bad if isinstance(one, formats.BadRow)]
                if isinstance(bad, list)
                else []
            )
        assert any(f"{key} (1)" in one or f"the key {key}," in one or f"it has {key}," in one for one in said)


def unkept(file: Path) -> Unkept:
    found = Unkept()
    for row in formats.read_whole(file, "").good:
        found = found.and_of(row)
    return found


def test_what_feedback_does_not_keep_of_a_row_is_told(tmp_path: Path) -> None:
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in said]
    messages[1]["loss"] = False
    file = lines(
        tmp_path, {"messages": messages, "replay": True}, {"messages": messages[2:], "part": "rehearsal"}
    )
    notes = " ".join(unkept(file).sentences())
    assert "1 answers within conversations are not to be learnt" in notes
    assert "2 rows were rehearsal or replay" in notes


def test_two_system_prompts_are_not_one(tmp_path: Path) -> None:
    row = {"query": "Q?", "response": "a", "system": "A", "system_prompt": "B"}
    assert [bad.reason for bad in formats.read(lines(tmp_path, row)).bad] == [
        "it has both system and system_prompt"
    ]
