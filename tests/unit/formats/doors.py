"""Every door through which rows come in, each to what a trainer reads in the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfyloop import formats
from comfyloop.cli import single_run
from comfyloop.curate import export, feedback_from, read_samples, unsayable
from comfyloop.curate.pictures import picked_drafts
from comfyloop.curate.rows import dump_rows, row_of
from comfyloop.curate.samples import Source, make
from comfyloop.errors import DataError
from comfyloop.formats import Row
from comfyloop.records import ImagePicked, Sample
from comfyloop.train.data.rows import read_rows, refuse_or_skip
from comfyloop.train.image import rows as image_rows
from comfyloop.train.recipes.joint import write_captions
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.image import ImageTrainSpec
from comfyloop.train.specs.joint import JointSpec
from comfyloop.train.specs.text import TrainSpec

Told = tuple[Any, ...]


def told(row: Row) -> Told:
    """What a row is to whoever trains on it: who said what, which pictures, what was judged."""
    pictures = [hashlib.sha256(image.read_bytes()).hexdigest() for image in row.images]
    return [(turn.role, list(turn.parts)) for turn in row.turns], pictures, row.rejected, row.label


# --- of answers ---------------------------------------------------------------------------------------------


def by_trainer(file: Path, folder: Path) -> list[Told]:
    rows, bad = read_rows(file)
    assert not bad, bad
    return [told(row) for row in rows]


def by_swift_command(file: Path, folder: Path) -> list[Told]:
    spec = TrainSpec(model=str(folder), train="train.jsonl")
    single_run.prepare(folder, spec, [str(file)], [str(file)])
    found = by_trainer(folder / "train.jsonl", folder)
    assert by_trainer(folder / "holdout.jsonl", folder) == found
    return found


def through_feedback(file: Path, folder: Path) -> Path:
    """What a snapshot has of a file that was fed back, as a trainer and the gate read it."""
    samples, images = imported(file)
    for sha, data in images.items():
        (folder / f"{sha}.png").write_bytes(data)
    written = folder / "train.jsonl"
    written.write_text(dump_rows([row_of(s, lambda sha: f"{sha}.png") for s in samples]), encoding="utf-8")
    assert read_samples(written, "acme") == samples
    return written


def by_import(file: Path, folder: Path) -> list[Told]:
    """Through feedback and a snapshot to what a trainer reads, and to what the gate does."""
    return by_trainer(through_feedback(file, folder), folder)


def by_export(file: Path, folder: Path) -> list[Told]:
    snapshot, out = folder / "snapshot", folder / "out"
    snapshot.mkdir()
    by_import(file, snapshot)
    for name in ("train.jsonl", "holdout.jsonl"):
        (snapshot / name).touch()
    exported = export(snapshot, out)
    if exported.left_out:  # what ms-swift's form cannot say stays behind, by name
        assert all("is left out: its text has <image>" in sentence for sentence in exported.left_out)
        return by_trainer(snapshot / "train.jsonl", snapshot)
    return by_trainer(out / "train.jsonl", out)


def by_swift_engine(file: Path, folder: Path) -> list[Told]:
    """What ms-swift's template is given of a row that the engine wrote for it, which knows no judgements."""
    found = []
    rows, bad = read_rows(file)
    refuse_or_skip(file, len(rows), bad, skip=False, max_share=0.0)
    for row in rows:
        if row.images and formats.quoted_tag(row) == formats.IMAGE_TAG:  # left out, by name
            found.append(told(row))
            continue
        written = json.loads(json.dumps(formats.to_swift(row, [str(image) for image in row.images])))
        again = formats.of_swift(written["messages"], None, written.get("images", []))
        assert [turn.learn for turn in again.turns] == [turn.learn for turn in row.turns]
        turns, pictures, *_ = told(again)
        turns = [(role, [part for part in parts if part != ""]) for role, parts in turns]
        found.append((turns, pictures, written.get("rejected_response"), written.get("label")))
    return found


def imported(file: Path) -> tuple[list[Sample], dict[str, bytes]]:
    images: dict[str, bytes] = {}

    def put(data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        images[sha] = data
        return sha

    samples = []
    for row in formats.read_whole(file, "").good:
        if why := unsayable(row):
            raise DataError(f"{file}:{row.where}: {why}.")
        item = feedback_from(row, "acme", "ada", {str(p): put(p.read_bytes()) for p in row.pictures})
        if isinstance(item, ImagePicked):
            drafts, dropped = picked_drafts(item, {})
            assert dropped is None
            samples.append(drafts[-1].sample)  # the pair, where it is one
            continue
        kind: Any = "preference" if item.rejected is not None else "sft" if item.label is None else "labelled"
        source = Source("acme", (item.id,), "sample_uploaded", "ada")
        samples.append(make(kind, item.messages, source, rejected=item.rejected, label=item.label))
    return samples, images


DOORS: dict[str, Callable[[Path, Path], list[Told]]] = {
    "trainer": by_trainer, "from-swift": by_swift_command, "import": by_import, "export": by_export,
    "swift engine": by_swift_engine,
}  # fmt: skip


# --- of pictures --------------------------------------------------------------------------------------------


def by_image_trainer(file: Path, folder: Path) -> list[Told]:
    """Prompt, chosen and rejected picture of each row."""
    found: dict[str, list[Any]] = {}
    kept, bad = image_rows.read_rows(file, pairs=False, max_image_pixels=10**6)
    pairs, _ = image_rows.read_rows(file, pairs=True, max_image_pixels=10**6)
    assert not bad, bad
    for row in kept:
        assert row.rejected is None
        found[f"{row.line} {row.item}"] = [row.caption, row.chosen.sha256, None]
    for row in pairs:
        assert row.rejected is not None
        found[f"{row.line} {row.item}"][2] = row.rejected.sha256
    return [tuple(values) for values in found.values()]


def by_joint_run(file: Path, folder: Path) -> list[Told]:
    image = ImageTrainSpec(model="m.safetensors", train=str(file.absolute()))
    run = RunDirectory(folder)
    target = folder / "image" / "train.jsonl"
    log = RunLog(run, silent=True)
    write_captions(run, JointSpec(image=image), image, target, log, Control(run, log.held))
    return by_image_trainer(target, folder)


def by_image_import(file: Path, folder: Path) -> list[Told]:
    """Through feedback and a snapshot to what the image trainer reads, and to what the gate does."""
    return by_image_trainer(through_feedback(file, folder), folder)


def by_image_swift_command(file: Path, folder: Path) -> list[Told]:
    single_run.prepare(folder, TrainSpec(model=str(folder), train="train.jsonl"), [str(file)], [])
    return by_image_trainer(folder / "train.jsonl", folder)


IMAGE_DOORS: dict[str, Callable[[Path, Path], list[Told]]] = {
    "image trainer": by_image_trainer, "joint": by_joint_run, "import": by_image_import,
    "from-swift": by_image_swift_command,
}  # fmt: skip
