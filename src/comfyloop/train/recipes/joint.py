"""Trains both sides on one snapshot: the text side first, then the image side on prompts that the text side writes.

Reads top to bottom. A killed run resumes in the side where it was.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfyloop import formats
from comfyloop.formats import Row
from comfyloop.train.data.rows import refuse_or_skip
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import IMAGE, TEXT, RunDirectory, write_atomically
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.joint import JointSpec
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.writing import Writer

Recipe = Callable[[RunDirectory, TrainSpec | ImageTrainSpec, RunLog, Control], None]


def run(directory: RunDirectory, spec: JointSpec, log: RunLog, control: Control, recipe: Recipe) -> None:
    """Train as `spec` says and leave `directory.adapter` with `text/` and `image/` in it, as far as trained.

    Args:
        recipe: Does the run of one side.

    Raises:
        What the recipes of the sides raise.
    """
    text, image = directory.side(TEXT), directory.side(IMAGE)
    if spec.text is not None and not text.adapter.is_dir():
        with log.side(TEXT):
            recipe(text, spec.text, log, control)
        gc.collect()  # the language model, before the image model is read
    if spec.image is not None and not image.adapter.is_dir():
        with log.side(IMAGE):
            train = image.path / "train.jsonl"
            if not train.exists():
                log.phase("writing prompts")
                write_captions(directory, spec, spec.image, train, log, control)
            gc.collect()
            recipe(image, spec.image.model_copy(update={"train": str(train)}), log, control)
    log.phase("putting the sides together")
    directory.join([side for side in (text, image) if side.adapter.is_dir()])


def write_captions(
    directory: RunDirectory,
    spec: JointSpec,
    image: ImageTrainSpec,
    target: Path,
    log: RunLog,
    control: Control,
) -> None:
    """Write the rows of the image side and, for each row with a brief, another one with the prompt that this run's
    text side writes for that brief."""
    source = directory.resolve(image.train)
    contents = formats.read(source)
    for sentence in contents.notes:
        log.say(sentence)
    rows, bad = contents.good, contents.bad
    refuse_or_skip(source, len(rows), bad, image.skip_bad, image.max_bad_share)
    log.left_out(source, bad)
    prompts: list[str] = [""] * len(rows)
    if spec.written_prompts and spec.writer_model and any(len(row.turns) > 1 for row in rows):
        trained_adapter = directory.side(TEXT).adapter
        adapter = (
            trained_adapter if trained_adapter.is_dir() else spec.writer and directory.resolve(spec.writer)
        )
        writer = Writer(spec.writer_model, Path(adapter) if adapter else None)
        answers: dict[object, str] = {}  # several pictures may have been made for one brief
        for number, row in enumerate(rows):
            brief = row.turns[:-1]
            if brief:
                control.check()
                question = (brief, row.images)
                if question not in answers:
                    answers[question] = writer.write(brief, row.images, spec.prompt_tokens)
                prompts[number] = answers[question]
        log.say(f"the text side wrote {sum(map(bool, answers.values()))} prompts")
    lines = []
    for row, prompt in zip(rows, prompts, strict=True):
        lines.append({"id": row.id, **_with_names(row)})
        if prompt and prompt != row.answer:
            *before, own = row.turns
            rewritten = replace(row, turns=(*before, replace(own, content=(prompt,))))
            lines.append({"id": f"{row.id}-written", **_with_names(rewritten)})
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines).encode())


def _with_names(row: Row) -> dict[str, Any]:
    """A row with its pictures by their absolute paths."""
    chosen, rejected = (str(one) if one else None for one in (row.chosen_image, row.rejected_image))
    fields = formats.to_json(row, [str(image) for image in row.images], chosen, rejected)
    return fields | {key: row.extra[key] for key in ("repeats", "crop") if key in row.extra}
