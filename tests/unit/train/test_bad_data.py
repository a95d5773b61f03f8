"""Everything that a data file has been seen to get wrong: named with file and line before a step is taken, left
out when that is asked for and told, and never replaced by another row."""

from __future__ import annotations

import json
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyloop.errors import DataError
from comfyloop.settings import Settings
from comfyloop.train.recipes import sft
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.text import TrainSpec

ANSWER = {"role": "assistant", "content": "A mug."}
ASKED = {"role": "user", "content": "<image>What is this?"}


def row(*messages: Any, **more: Any) -> str:
    return json.dumps({"id": "odd", "messages": list(messages), **more})


def write_bomb(path: Path) -> None:
    """A PNG whose header claims 30,000 x 30,000 pixels, a few hundred bytes long."""
    Image.new("1", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = Image.effect_noise((90, 90), 60).convert("RGB")
    noise.save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    noise.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    (tmp_path / "page.png").write_text("<!doctype html><title>404 Not Found</title>")
    write_bomb(tmp_path / "bomb.png")
    (tmp_path / "directory.png").mkdir()
    return tmp_path


@pytest.fixture
def train(folder: Path, tiny_vlm: Path) -> Iterator[Callable[..., RunDirectory]]:
    """Train in this process on three good rows, with a line after the first of them."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(line: str, **values: object) -> RunDirectory:
        good = [
            json.dumps(
                {
                    "id": f"good{n}",
                    "messages": [{"role": "user", "content": f"<image>Number {n}?"}, ANSWER],
                    "images": ["good.png"],
                }
            )
            for n in range(3)
        ]
        (folder / "rows.jsonl").write_text("\n".join([good[0], line, *good[1:]]) + "\n")
        directory = RunDirectory(folder)
        log = RunLog(directory)
        told = {"model": str(tiny_vlm), "train": "rows.jsonl", "dtype": "float32", "max_steps": 1} | values
        sft.run(directory, TrainSpec.model_validate(told), log, Control(directory, log.held))
        return directory

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


BAD = {
    "missing image": (row(ASKED, ANSWER, images=["nowhere.png"]), "its image nowhere.png does not exist"),
    "zero bytes": (row(ASKED, ANSWER, images=["empty.png"]), "its image empty.png is empty"),
    "truncated PNG": (row(ASKED, ANSWER, images=["cut.png"]), "its image cut.png cannot be decoded"),
    "truncated JPEG": (row(ASKED, ANSWER, images=["cut.jpg"]), "its image cut.jpg cannot be decoded"),
    "HTML as PNG": (row(ASKED, ANSWER, images=["page.png"]), "its image page.png is not one of PNG"),
    "30,000 x 30,000": (row(ASKED, ANSWER, images=["bomb.png"]), "30000 x 30000 pixels, more than max_image_pixels"),
    "a directory": (row(ASKED, ANSWER, images=["directory.png"]), "its image directory.png cannot be read"),
    "malformed line": ('{"messages": [', "it is not JSON"),
    "tag without image": (
        row({"role": "user", "content": "<image> and <image>?"}, ANSWER, images=["good.png"]),
        "its text has 2 <image> tags and it names 1 image: there is no picture for tag 2 (message 1)",
    ),
    "image without tag": (
        row(ASKED, ANSWER, images=["good.png", "more.png"]),
        "its text has 1 <image> tag and it names 2 images: there is no <image> tag for more.png",
    ),
    "empty answer": (row(ASKED, {"role": "assistant", "content": " \n"}, images=["good.png"]), "its answer is empty"),
    "no assistant": (row(ASKED, images=["good.png"]), "its last message is the user's, so there is no answer"),
    "a number for text": (row({"role": "user", "content": 7}, ANSWER), "message 1 has a content of type int"),
    "a list for text": (row({"role": "user", "content": [7]}, ANSWER), "message 1 has a part of type int"),
    "a web address for an image": (row(ASKED, ANSWER, images="http://a/b.png"), "http://a/b.png is a web address"),
    "a number for an image": (row(ASKED, ANSWER, images=[5]), "one of its images is a int, not a path"),
    "a text for messages": (json.dumps({"id": "odd", "messages": "Hello"}), "its messages are no list of messages"),
    "a text for label": (
        row({"role": "user", "content": "Hi"}, ANSWER, label="yes"), "its label is 'yes', not true or false",
    ),
    "an unknown role": (row({"role": "tool", "content": "x"}, ANSWER), "the role 'tool', which is none of"),
    "too long": (
        row({"role": "user", "content": "long " * 600}, ANSWER), "more than the 512 that the model was trained on",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_it_is_named_before_a_step(
    name: str, train: Callable[..., RunDirectory], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, reason = BAD[name]
    sample = "" if name == "malformed line" else r" \(sample odd\)"
    with pytest.raises(DataError, match=rf"1 of 4 rows .*: rows\.jsonl:2{sample}: .*") as error:
        train(line)
    assert reason in str(error.value)
    assert not list(RunDirectory(folder).log_lines())
    assert not RunDirectory(folder).adapter.exists()

    with pytest.raises(DataError, match=r"more than the share of 10% that may be skipped \(max_bad_share\)"):
        train(line, skip_bad=True)
    capsys.readouterr()
    directory = train(line, skip_bad=True, max_bad_share=0.25)
    said = capsys.readouterr().out
    assert "left out rows.jsonl:2" in said
    assert reason in said
    assert "rows.jsonl: 3 samples" in said
    assert directory.adapter.is_dir()


def test_roles_of_other_tools_are_converted(train: Callable[..., RunDirectory]) -> None:
    turns = [{"from": "human", "value": "<image>What is this?"}, {"from": "gpt", "value": "A mug."}]
    directory = train(json.dumps({"id": "old", "conversations": turns, "images": ["good.png"]}))
    assert directory.adapter.is_dir()


def test_a_column_of_mixed_types_is_read_line_by_line(
    train: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    """A loader with one type a column fails on it, or turns all of it into text."""
    odd = [7, "text", None, [1, {"a": 2}], {"b": [True]}, 1.5]
    lines = "\n".join(row({"role": "user", "content": "Hi"}, ANSWER, extra=value) for value in odd)
    train(lines)
    assert "rows.jsonl: 9 samples" in capsys.readouterr().out


def test_what_is_left_out_is_kept_in_the_status(
    train: Callable[..., RunDirectory], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = row(ASKED, ANSWER, images=["nowhere.png"])
    (folder / "held.jsonl").write_text(line + "\n")
    directory = train(line, holdout="held.jsonl", skip_bad=True, max_bad_share=1.0)
    status = directory.read_status()
    assert [(left.file, left.line, left.sample) for left in status.left_out] == [
        ("rows.jsonl", 2, "odd"), ("held.jsonl", 1, "odd"),
    ]  # fmt: skip
    assert all(left.reason == "its image nowhere.png does not exist" for left in status.left_out)
    assert status.left_out_count == 2 and directory.adapter.is_dir()


def test_a_run_of_the_loop_fails_only_when_nothing_is_left(
    train: Callable[..., RunDirectory], folder: Path, tiny_vlm: Path
) -> None:
    told = TrainSpec.from_settings(Settings(), model=str(tiny_vlm), train="rows.jsonl", holdout=None)
    assert (told.skip_bad, told.max_bad_share) == (True, 1.0)
    (folder / "good.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"4 of 4 rows .* Nothing is left to train on"):
        train("{", skip_bad=True, max_bad_share=1.0)


def test_a_holdout_of_training_rows_is_noticed(
    train: Callable[..., RunDirectory], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = {"role": "user", "content": "<image>Number 1?"}
    new = {"role": "user", "content": "<image>Number 9?"}
    held = [row(again, {"role": "assistant", "content": "Another one."}, images=["good.png"]),
            row(new, ANSWER, images=["good.png"])]  # fmt: skip
    (folder / "held.jsonl").write_text("\n".join(held))
    directory = train(row(ASKED, ANSWER, images=["good.png"]), holdout="held.jsonl")
    (warning,) = directory.read_status().warnings
    assert warning.startswith(
        "1 of the 2 rows of the hold-out held.jsonl ask what rows of the training data ask"
    )
    assert f"warning: {warning}" in capsys.readouterr().out
