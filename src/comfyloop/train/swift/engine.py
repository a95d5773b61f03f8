"""The second training engine: ms-swift itself, in its own environment and process, monitored.

The data is read and checked by the same code as for our trainer before ms-swift is started, and rows, tokens and
processes are counted in its process (`worker.py`). At the end the run is checked: every row was used, none twice,
none replaced; exactly one process trained; the loss and the weights changed. Errors that ms-swift does not report
make the run fail with a message.

ms-swift's own files (its log, checkpoints, arguments) are in `RUN_DIR/swift`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import comfyloop
from comfyloop import formats
from comfyloop.durable import appear
from comfyloop.environments import python_of
from comfyloop.errors import InvalidInput, RunFailed
from comfyloop.formats import IMAGE_TAG, BadRow, Row
from comfyloop.models import devices
from comfyloop.models.lora_start import refuse_changed_base
from comfyloop.recipes import RECIPES
from comfyloop.settings import Settings
from comfyloop.train.data.encode import Encoder
from comfyloop.train.data.examples import Example
from comfyloop.train.data.reading import read_examples, read_labelled, read_pairs
from comfyloop.train.data.rows import read_rows, refuse_or_skip
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory, disk_error, write_atomically
from comfyloop.train.run.learnt import refuse_unlearnt
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.swift import worker
from comfyloop.train.swift.arguments import Places, arguments
from comfyloop.train.swift.checks import check_run
from comfyloop.train.swift.process import SwiftWatch, see_output
from comfyloop.train.text.models import Description, describe
from comfyloop.train.text.trainable import adapter_config, lora_targets, trained_parts

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def run(directory: RunDirectory, spec: TrainSpec, log: RunLog, control: Control) -> None:
    """Train as `spec` says, with ms-swift, and leave `directory.adapter`.

    Raises:
        NotFound: ms-swift is not installed.
        DataError, ModelError, InvalidInput: before ms-swift is started.
        Cancelled, Terminated: a valid checkpoint of ms-swift's has been left, once it had begun to train.
        RunFailed: ms-swift failed, did something else than it was told, or learnt nothing.
    """
    if spec.world_size > 1:
        raise InvalidInput(
            f"This run asks for {spec.world_size} processes, and ms-swift trains with one here.",
            "Set world_size to 1, or train_engine to comfyloop.",
        )
    settings = Settings()
    if spec.swift_python:
        settings = settings.model_copy(update={"swift_python": spec.swift_python})
    python = python_of("swift", settings)
    folder = directory.path / "swift"
    folder.mkdir(exist_ok=True)

    log.phase("reading the data")
    description = describe(spec.model, spec.rope_scaling)
    train = prepare_rows(directory, spec.train, description, spec, folder / "train.jsonl", log, control)
    recipe = RECIPES[spec.recipe]
    assert recipe.swift is not None  # a spec of another recipe does not name this engine
    if recipe.swift.mixes_rows:
        refuse_lone_row(spec, len(train))
    if holdout := spec.holdout if not recipe.swift.mixes_rows else None:
        prepare_rows(directory, holdout, description, spec, folder / "holdout.jsonl", log, control)
    init_from = directory.resolve(spec.adapter.init_from) if spec.adapter.init_from else None
    if init_from is not None:
        refuse_changed_base(f"The adapter {init_from}", adapter_config(init_from))
    device = devices.choose()
    places = Places(
        model=spec.model,
        train=folder / "train.jsonl",
        holdout=folder / "holdout.jsonl" if holdout else None,
        output=folder,
        init_from=init_from,
        checkpoint=newest_checkpoint(folder),
    )
    command_line = arguments(
        spec,
        places,
        dtype=str(devices.precision(device, spec.dtype)).removeprefix("torch."),
        use_cpu=device.type == "cpu",
        targets=targets(description, spec),
        own=worker.NAME,
    )
    hashes = [worker.row_hash(example.input_ids.tolist()) for example in train]
    refuse_other_data(folder, places, command_line, hashes)
    names = {h: f"the row on line {example.line}" for h, example in zip(hashes, train, strict=True)}

    log.phase("starting ms-swift")
    task = write_task(directory, folder, spec, command_line)
    watch = SwiftWatch(directory, spec, log, control, len(train))
    command = [str(python), "-P", worker.__file__, str(task)]  # -P: our folder has a swift.py too
    watch.run(command, folder / "events.jsonl", afresh=places.checkpoint is None)
    summary = check_run(watch.progress, hashes, names)
    log.say(f"checked: {summary}")
    rows = len(train) // 2 if recipe.kind == "preference" else len(train)
    steps = math.ceil(rows / (spec.per_device_train_batch_size * spec.gradient_accumulation_steps))
    losses = [watch.progress.losses[step] for step in sorted(watch.progress.losses)]
    held_out = [line["holdout_loss"] for line in log.lines() if line["holdout_loss"] is not None]
    refuse_unlearnt(spec, losses, steps, held_out)

    log.phase("saving the adapter")
    last = newest_checkpoint(folder)
    if last is None or step_of(last) != watch.progress.total_steps:
        raise RunFailed("ms-swift ended without a checkpoint of its last step.", see_output(directory))
    check_weights_moved(last, places.init_from)
    keep_adapter(last, directory.adapter)
    shutil.rmtree(folder / "cache", ignore_errors=True)


def prepare_rows(
    directory: RunDirectory,
    file: str,
    description: Description,
    spec: TrainSpec,
    place: Path,
    log: RunLog,
    control: Control,
) -> list[Example]:
    """Check every row as for our own trainer, and write the valid rows for ms-swift.

    Returns the training examples: one per row, and for `dpo` another one for its rejected answer.

    Roles and images are written in the only form that ms-swift supports: it resolves image paths relative to the
    working directory, not to the file.
    """
    examples = _read(directory, file, description.encoder(spec), spec, log, control)
    rows = read_rows(directory.resolve(file))[0]
    # by line and id: all rows of an array may stand on one line
    quoting = {
        (row.line, row.id): BadRow(row.line, row.id, _CANNOT_QUOTE, row.item)
        for row in rows
        if _quotes_a_tag(row)
    }
    good = {(example.line, example.id) for example in examples} - quoting.keys()
    refuse_or_skip(Path(file), len(good), list(quoting.values()), spec.skip_bad, spec.max_bad_share)
    log.left_out(Path(file), list(quoting.values()))
    examples = [example for example in examples if (example.line, example.id) in good]
    lines, kind = [], RECIPES[spec.recipe].kind
    for row in (row for row in rows if (row.line, row.id) in good):
        swift_row = replace(
            row,
            rejected=row.rejected if kind == "preference" else None,
            label=row.label if kind == "labelled" else None,
        )
        images = [str(image.absolute() if isinstance(image, Path) else image) for image in row.images]
        lines.append(json.dumps(formats.to_swift(swift_row, images), ensure_ascii=False) + "\n")
    write_atomically(place, "".join(lines).encode())
    return examples


_CANNOT_QUOTE = (
    f"its text has {IMAGE_TAG}, which ms-swift takes for a picture (our own train_engine does not)"
)


def _quotes_a_tag(row: Row) -> bool:
    return bool(row.images) and any(IMAGE_TAG in turn.text for turn in row.turns)


def _read(
    directory: RunDirectory, file: str, encoder: Encoder, spec: TrainSpec, log: RunLog, control: Control
) -> list[Example]:
    match RECIPES[spec.recipe].kind:
        case "preference":
            pairs = read_pairs(directory, file, encoder, spec, log, control)
            return [example for pair in pairs for example in (pair.chosen, pair.rejected)]
        case "labelled":
            return [item.example for item in read_labelled(directory, file, encoder, spec, log, control)]
    return read_examples(directory, file, encoder, spec, log, control)


def refuse_lone_row(spec: TrainSpec, rows: int) -> None:
    """Such a recipe (KTO) gives each row the answer of another one of its step, and stops on a row that is alone.

    For the same reason it is given no hold-out: that is cut into steps too.
    """
    step = spec.per_device_train_batch_size * spec.gradient_accumulation_steps
    if rows % step == 1:
        raise InvalidInput(
            f"{rows} rows in steps of {step} leave one row alone, which the {spec.recipe} of ms-swift cannot use.",
            "Set another per_device_train_batch_size, or train_engine = comfyloop.",
        )


def targets(description: Description, spec: TrainSpec) -> str | list[str]:
    """LoRA's target modules for this model, found on its classes alone: no weights are read."""
    with torch.device("meta"):
        skeleton = description.auto.from_config(description.config)
    return lora_targets(skeleton, spec.adapter.target_modules, trained_parts(spec))


def write_task(directory: RunDirectory, folder: Path, spec: TrainSpec, command_line: list[str]) -> Path:
    (folder / "stop").unlink(missing_ok=True)
    swift = RECIPES[spec.recipe].swift
    assert swift is not None
    task = {
        "run": str(directory.path),
        "parent_pid": os.getpid(),
        "import_from": str(Path(comfyloop.__file__).parent.parent),
        "events": str(folder / "events.jsonl"),
        "stop_files": [str(directory.cancel_file), str(folder / "stop")],
        "command": swift.command,
        "arguments": command_line,
    }
    place = folder / "task.json"
    write_atomically(place, json.dumps(task, indent=2).encode())
    return place


def newest_checkpoint(folder: Path) -> Path | None:
    """ms-swift's newest complete checkpoint; one that a kill left incomplete is deleted."""
    for place in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if is_whole(place):
            return place
        shutil.rmtree(place)
    return None


def is_whole(place: Path) -> bool:
    """Whether its last written file exists and its tensors can be read completely."""
    try:
        json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))
        load_file(place / ADAPTER_FILES[1])
        return all((place / name).exists() for name in (ADAPTER_FILES[0], "optimizer.pt", "scheduler.pt"))
    except (OSError, ValueError, SafetensorError):
        return False


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def refuse_other_data(folder: Path, places: Places, command_line: list[str], hashes: list[str]) -> None:
    """Refuse to resume a checkpoint with another spec or other data than its own."""
    words = [word for word in command_line if word != str(places.checkpoint)]
    words = [word for word in words if word != "--resume_from_checkpoint"]
    digest = hashlib.sha256(json.dumps([words, hashes]).encode()).hexdigest()
    place = folder / "fingerprint"
    if places.checkpoint is not None and place.read_text("utf-8") != digest:
        raise InvalidInput(
            f"The checkpoint {places.checkpoint} belongs to another spec or other data than this run has now.",
            "Restore spec.json and the data, or start a new run directory.",
        )
    write_atomically(place, digest.encode())


def check_weights_moved(checkpoint: Path, init_from: Path | None) -> None:
    """Raises RunFailed if the adapter is unchanged by training, or contains values that are not finite."""
    after = load_file(checkpoint / ADAPTER_FILES[1])
    if not all(torch.isfinite(tensor).all() for tensor in after.values()):
        raise RunFailed("ms-swift left an adapter with weights that are no numbers.", "Lower learning_rate.")
    if init_from is not None:
        before = load_file(init_from / ADAPTER_FILES[1])
        has_moved = any(not torch.equal(after[name], before[name].to(after[name])) for name in after)
    else:
        has_moved = any(
            tensor.any() for name, tensor in after.items() if "lora_B" in name
        )  # they begin at zero
    if not has_moved:
        raise RunFailed(
            "ms-swift took all its steps, and the adapter is what it was before.", "Raise learning_rate."
        )


def keep_adapter(checkpoint: Path, place: Path) -> None:
    """Copy the PEFT files of a checkpoint to `place`, atomically."""

    def write(making: Path) -> None:
        for name in ADAPTER_FILES:
            shutil.copy(checkpoint / name, making / name)

    try:
        appear(place, write)
    except OSError as error:
        raise disk_error(place, error) from error
