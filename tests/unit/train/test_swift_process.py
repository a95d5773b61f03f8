"""What is known of ms-swift's process after we were killed beside it. The process here is one that ends at once."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.swift.process import SwiftWatch
from tests.families import make_family

SPEC = TrainSpec(model="none", train="train.jsonl", train_engine="swift")
TOTAL = 12


def begin(step: int) -> dict[str, Any]:
    return {"event": "begin", "step": step, "total_steps": TOTAL, "world_size": 1, "trainable": 1, "total": 2}


def steps(first: int, last: int) -> list[dict[str, Any]]:
    """What ms-swift tells of steps: a hold-out loss after every third."""
    told: list[dict[str, Any]] = []
    for step in range(first, last + 1):
        batch = {"rows": [f"{step:016x}"], "tokens": 9, "padded": 1, "answer_tokens": 5, "without_answer": 0}
        told.append({"event": "step", "step": step, "learning_rate": 1e-3, "batches": [batch]})
        told.append({"event": "log", "step": step, "epoch": step / 4, "values": {"loss": 5.0 - 0.1 * step}})
        if step % 3 == 0:
            told.append(
                {"event": "log", "step": step, "epoch": step / 4, "values": {"eval_loss": 6.0 - step}}
            )
    return [event | {"time": 10.0 + number} for number, event in enumerate(told)]


def watch(directory: RunDirectory, events: list[dict[str, Any]]) -> None:
    """Follow a process that ends at once, after others that told these events."""
    file = directory.path / "events.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    log = RunLog(directory, silent=True)
    watching = SwiftWatch(directory, SPEC, log, Control(directory, log.held), samples=4)
    watching.run([sys.executable, "-S", "-c", ""], file, afresh=False)


def curve(directory: RunDirectory) -> list[tuple[int, float | None, float | None]]:
    return [(line["step"], line["loss"], line["holdout_loss"]) for line in directory.log_lines()]


@settings(max_examples=12)  # each starts four processes
@given(data=st.data())
def test_what_was_told_before_a_kill_is_logged(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Killed with any part of the events seen, gone on from any checkpoint: no line is missing or twice."""
    folder = tmp_path_factory.mktemp("run")
    whole, killed = RunDirectory(folder / "whole"), RunDirectory(folder / "killed")
    for directory in (whole, killed):
        directory.path.mkdir()
    watch(whole, [begin(0) | {"time": 9.0}, *steps(1, 8)])

    told = [begin(0) | {"time": 9.0}, *steps(1, 8)]
    seen = data.draw(st.integers(0, len(told)), "events looked at before the kill")
    watch(killed, told[:seen])
    watch(killed, told)
    assert curve(killed) == curve(whole)

    checkpoint = data.draw(st.integers(1, 8), "step of the checkpoint that is gone on from")
    again = [*told, begin(checkpoint) | {"time": 99.0}, *steps(checkpoint + 1, 10)]
    for directory in (whole, killed):
        RunLog(directory, silent=True).begin(checkpoint, TOTAL, 1, 2)
        watch(directory, again)
    assert curve(killed) == curve(whole)
    assert [step for step, loss, _ in curve(killed) if loss is not None] == list(range(1, 11))


def test_lines_are_counted_from_what_was_told(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    watch(directory, [begin(0) | {"time": 9.0}, *steps(1, 2)])
    first, second = directory.log_lines()
    assert (first["samples_per_s"], first["padded_share"]) == (0.5, 0.1)  # the event of its step came at 10 s
    assert second["answer_tokens_per_s"] == 2.5 and second["learning_rate"] == 1e-3


def test_what_is_left_is_never_told_as_less_than_nothing_after_a_hold(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    file = tmp_path / "events.jsonl"
    quick = [event | {"time": 9.0 + number / 100} for number, event in enumerate([begin(0), *steps(1, 3)])]
    told = "".join(json.dumps(event) + "\n" for event in quick)
    tell = f"import time\nwith open({str(file)!r}, 'a') as f: f.write({told!r})\n"
    directory.hold_file.touch()
    threading.Timer(0.8, directory.hold_file.unlink).start()
    log = RunLog(directory, silent=True)
    watching = SwiftWatch(directory, SPEC, log, Control(directory, log.held), samples=4)
    watching.run([sys.executable, "-S", "-c", tell], file, afresh=False)
    left = [line["eta_seconds"] for line in directory.log_lines() if line["loss"] is not None]
    assert len(left) == 3 and all(seconds >= 0 for seconds in left)
    assert (directory.read_status().eta_seconds or 0) >= 0


def test_rows_of_an_array_on_one_line_are_told_apart(tmp_path: Path) -> None:
    """A row that ms-swift would misread is left out by itself, though all stand on line 1."""
    from PIL import Image

    from comfyloop.train.swift.engine import prepare_rows
    from comfyloop.train.text.models import describe

    model = make_family("qwen2_vl", tmp_path / "model")
    Image.new("RGB", (24, 16)).save(tmp_path / "a.png")
    asked = [
        [{"type": "image", "image": "a.png"}, {"type": "text", "text": text}]
        for text in ("Which <image>?", "What?")
    ]
    rows = [
        {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cup."}]}
        for content in asked
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    directory = RunDirectory(tmp_path)
    spec = SPEC.model_copy(
        update={"model": str(model), "train": "train.json", "skip_bad": True, "max_bad_share": 0.9}
    )
    log = RunLog(directory, silent=True)
    place = tmp_path / "swift.jsonl"
    examples = prepare_rows(
        directory, "train.json", describe(str(model)), spec, place, log, Control(directory, log.held)
    )
    (written,) = [json.loads(line) for line in place.read_text().splitlines()]
    assert written["messages"][0]["content"] == "<image>What?" and len(examples) == 1
