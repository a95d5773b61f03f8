"""A training run by itself: data files and a spec in, an adapter out, with no service and no loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from comfyloop import formats
from comfyloop.errors import DataError
from comfyloop.formats import Picture
from comfyloop.train.run.directory import Status
from comfyloop.train.runners import local
from comfyloop.train.specs.files import write_spec
from comfyloop.train.specs.text import TrainSpec


def prepare(
    run_dir: Path,
    spec: TrainSpec,
    datasets: Sequence[str],
    holdouts: Sequence[str],
    note: Callable[[str], object] = lambda _: None,
) -> TrainSpec:
    """Write the rows of the data files into a run directory, in the one form that trainers read; the spec with
    what it names found.

    Args:
        datasets, holdouts: Files in any form that ms-swift reads. A relative image path is looked for beside
            its file, then, as ms-swift does, where the command is given.
        note: is told what a person should know of the files.

    Raises:
        NotFound: A file is missing.
        DataError: One has rows that are none, each named.
    """
    rows_of = {"train.jsonl": _rows(datasets, note)} | (
        {"holdout.jsonl": _rows(holdouts, note)} if holdouts else {}
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    for name, text in rows_of.items():
        (run_dir / name).write_text(text, encoding="utf-8")
    adapter = spec.adapter.model_copy(update={"init_from": _found(spec.adapter.init_from)})
    return spec.model_copy(update={"model": _found(spec.model), "adapter": adapter})


def _found(name: str | None) -> str | None:
    """A directory by its absolute path; an id of a hub as it is."""
    return str(Path(name).absolute()) if name and Path(name).is_dir() else name


def train(run_dir: Path, spec: TrainSpec, *, quiet: bool = False) -> Status:
    """Train in the foreground and say how it ended; `quiet` keeps what the trainer prints in `train.out`."""
    if quiet:
        write_spec(run_dir, spec)
        local.start(run_dir)
        return local.wait(run_dir, timeout=math.inf)
    local.run_here(run_dir, spec)
    return local.poll(run_dir)


def _rows(files: Sequence[str], note: Callable[[str], object]) -> str:
    lines = []
    for name in files:
        file, _, sample = name.partition("#")
        if sample:
            raise DataError(
                f"{name} asks for {sample} of the rows of {file}, drawn by chance.",
                "Give a file that holds the rows you want.",
            )
        path = Path(file)
        contents = formats.read_whole(path, "Mend or remove these lines.")
        for sentence in contents.notes:
            note(sentence)
        for row in contents.good:
            images = [_image(image, path.parent) for image in row.images]
            pictures = [
                _image(image, path.parent) if image else None
                for image in (row.chosen_image, row.rejected_image)
            ]
            value = {"id": f"{path}:{row.where}", **formats.to_json(row, images, *pictures)}
            lines.append(json.dumps(value, ensure_ascii=False) + "\n")
    return "".join(lines)


def _image(image: Picture, folder: Path) -> str:
    """A picture that is looked for beside the file, then where the command is given."""
    if not isinstance(image, Path):
        return str(image)
    here = image.relative_to(folder) if image.is_relative_to(folder) else image
    return str((here if not image.exists() and here.exists() else image).absolute())
