"""Compares two versions of the image side on held-out pictures with the same noise. Reads top to bottom.

Only one version is in memory at a time. Measurements are written at once, so that a stopped comparison resumes
where it was.
"""

from __future__ import annotations

import contextlib
import gc
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from comfyloop.durable import replace_whole
from comfyloop.errors import ModelError
from comfyloop.formats import UnusableRow
from comfyloop.media.looks import looks
from comfyloop.records import Scores
from comfyloop.taste import Comparison, Vector, learn
from comfyloop.train.image import kohya
from comfyloop.train.image.batches import Batch, batches
from comfyloop.train.image.lora import alpha_of
from comfyloop.train.image.objectives import denoising_error, preference_loss
from comfyloop.train.image.render import draw
from comfyloop.train.image.rows import Picture, PictureRow, decode, picture_at, read_rows
from comfyloop.train.image.trainable import TrainableImageModel, caption_of, prepare
from comfyloop.train.judge.scorer import ImageScorer, image_scorer_of
from comfyloop.train.judge.sheet import SheetRow, contact_sheet
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory, write_atomically
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.image import ImageAdapterSpec, ImageTrainSpec
from comfyloop.train.specs.judge import (
    SEEN_FILE,
    SHEET_FILE,
    SIDES,
    JudgeFindings,
    JudgeSpec,
    picture_file,
    seed_of,
)

BANDS = ("low", "middle", "high")
"""Thirds of the schedule, by how much noise there is."""
LOOKS = 2
"""Timesteps of each band at which a picture is looked at."""
MOST_LIKED = 64
"""Pictures that stand for all that the person kept, the newest."""
MOST_PAIRS = 64
"""Pairs from which the person's taste is learnt, the newest."""
OF_SCORER = 2.0
"""What a vector of length 1 of the scorer's counts beside what is seen without a model."""


@dataclass(frozen=True)
class ComparedVersion:
    """One of the two in memory; `side` is its place in pairs of (live, candidate)."""

    side: int
    trainable: TrainableImageModel
    spec: JudgeSpec
    drawings: Path


Ask = Callable[[ComparedVersion, PictureRow], dict[str, float]]


def run(directory: RunDirectory, spec: JudgeSpec, log: RunLog, control: Control) -> None:
    """Leave `seen.json` (`JudgeFindings`) and, where pictures were drawn, `sheet.png`.

    Raises:
        DataError, ModelError, NotFound: The pictures, the model or an adapter cannot be used.
        Cancelled, Terminated: What was measured so far is kept.
    """
    if (directory.path / SEEN_FILE).exists():
        return
    log.phase("reading the pictures")
    kept_rows = [row for row in _rows(directory, spec, spec.kept) if row.id in spec.chosen]
    pairs = [row for row in _rows(directory, spec, spec.pairs, pairs=True) if row.id in spec.chosen]
    rows_to_draw = [row for row in kept_rows if row.id in spec.drawn]
    drawings = directory.resolve(spec.pictures or "drawn")
    questions: list[tuple[Ask, PictureRow]] = [
        *((errors, row) for row in kept_rows),
        *((preference, row) for row in pairs),
        *((drawing, row) for row in rows_to_draw if spec.pictures is None),
    ]
    notes = Notes(directory.path / "notes.jsonl")
    for side, adapter in enumerate((spec.live, spec.candidate)):
        log.phase(f"loading the {SIDES[side]} version")
        version = ComparedVersion(side, load_with_adapter(directory, spec.image, adapter), spec, drawings)
        log.phase(f"asking the {SIDES[side]} version")
        for number, (ask, row) in enumerate(questions, start=1):
            control.check()
            try:
                notes.once(ask, version, row)
            except UnusableRow as error:
                log.say(f"left out {row.id}: {error}")
            log.progress(side * len(questions) + number, len(SIDES) * len(questions))
        del version
        gc.collect()

    by = taste = ""
    if rows_to_draw:
        log.phase("looking at what was drawn")
        scorer = image_scorer_of(spec)
        if scorer is not None:
            by = scorer.name
            liked_rows = _rows(directory, spec, spec.image.train)[-MOST_LIKED:]
            look_at(scorer, rows_to_draw, liked_rows, drawings, notes, control)
        compared_pairs = _rows(directory, spec, spec.taste, pairs=True)[-MOST_PAIRS:]
        if compared_pairs:
            taste = by_taste(scorer, rows_to_draw, compared_pairs, drawings, notes, control)
        sheet(rows_to_draw, spec, drawings).save(directory.path / SHEET_FILE)
    findings = JudgeFindings(scores=notes.both(), by=by, taste=taste)
    write_atomically(directory.path / SEEN_FILE, findings.model_dump_json().encode())


def _rows(
    directory: RunDirectory, spec: JudgeSpec, file: str | None, *, pairs: bool = False
) -> list[PictureRow]:
    """The usable rows of a file; none if there is no file."""
    path = directory.resolve(file) if file else None
    if path is None or not path.exists():
        return []
    return read_rows(path, pairs=pairs, max_image_pixels=spec.image.max_image_pixels)[0]


def load_with_adapter(
    directory: RunDirectory, spec: ImageTrainSpec, adapter: str | None
) -> TrainableImageModel:
    """The model with an adapter, whatever rank and modules that has; a fresh one changes nothing."""
    adapter_spec = ImageAdapterSpec(r=1, lora_alpha=1)
    if adapter is not None:
        adapter_spec = form_of(directory.resolve(adapter)).model_copy(update={"init_from": adapter})
    trainable = prepare(directory, spec.model_copy(update={"adapter": adapter_spec}))
    trainable.start = None  # preferences are told against the untrained model
    trainable.eval()
    return trainable


def form_of(file: Path) -> ImageAdapterSpec:
    """What the spec of the run that made a LoRA said of its form, read off the file."""
    tensors, _ = kohya.read(file)
    down = next(name for name in tensors if name.endswith(".lora_down.weight"))
    key = down.removesuffix(".lora_down.weight")
    alpha = alpha_of(file.name, key, tensors.get(f"{key}.alpha", torch.tensor(torch.nan)))
    if not tensors[down].ndim or not alpha.is_integer():
        raise ModelError(
            f"{file.name} has alpha {alpha:g} and the shape {list(tensors[down].shape)} at {key}: no LoRA of ours.",
            "Name a version's image adapter.",
        )
    places = [name for name in tensors if not name.startswith("lora_te")]
    return ImageAdapterSpec.model_validate(
        {
            "r": len(tensors[down]),
            "lora_alpha": int(alpha),
            "target_modules": "all" if any("_ff_" in n or "_conv" in n for n in places) else "attention",
            "text_encoder": len(places) < len(tensors),
        }
    )


# --- what is asked ------------------------------------------------------------------------------------------


@torch.no_grad()
def errors(version: ComparedVersion, row: PictureRow) -> dict[str, float]:
    """Squared errors under the person's own prompt and the one that this version wrote, by bands."""
    captions = {"own": row.caption}
    if row.id in version.spec.written:
        captions["written"] = version.spec.written[row.id][version.side]
    losses = {}
    for name, caption in captions.items():
        squared_errors = [
            error
            for batch in _looks(version, replace(row, caption=caption))
            for error in denoising_error(version.trainable, batch).tolist()
        ]
        for number, band in enumerate(BANDS):
            losses[f"denoising_loss/{name}/{band}"] = (
                sum(squared_errors[number * LOOKS : (number + 1) * LOOKS]) / LOOKS
            )
    return losses


@torch.no_grad()
def preference(version: ComparedVersion, row: PictureRow) -> dict[str, float]:
    """How much more than the untrained model a version prefers the picked picture.

    Diffusion-DPO's implicit margin (Wallace et al. 2023) with beta 2, which is in units of the squared error.
    """
    margins = torch.cat(
        [preference_loss(version.trainable, batch, 2.0).margin for batch in _looks(version, row)]
    )
    margin = float(margins.mean())
    return {"pick_margin": margin, "pick_accuracy": 0.5 if margin == 0 else float(margin > 0)}


def _looks(version: ComparedVersion, row: PictureRow) -> Iterator[Batch]:
    """A row at the timesteps of all bands, with noise that depends on the picture alone."""
    trainable, spec = version.trainable, version.spec.image
    most, count = trainable.model.scheduler.config.num_train_timesteps, len(BANDS) * LOOKS
    steps = [int((look + 0.5) * most / count) for look in range(count)]
    if trainable.model.is_flow:  # they index sigmas that fall
        steps.reverse()
    chance = random.Random(row.chosen.sha256)
    for start in range(0, count, spec.per_device_train_batch_size):
        part = steps[start : start + spec.per_device_train_batch_size]
        yield from batches(trainable, [row] * len(part), spec, chance, training=False, timesteps=part)


def drawing(version: ComparedVersion, row: PictureRow) -> dict[str, float]:
    """Draw a version's own prompt, in the shape of the picture that was kept."""
    spec, place = version.spec, picture_file(version.drawings, version.side, row.id)
    prompt = caption_of(replace(row, caption=spec.prompts(row.id, row.caption)[version.side]), spec.image)
    size = version.trainable.latents.size(row.chosen)
    image = draw(
        version.trainable, prompt, seed_of(row.id), size=size, steps=spec.steps, guidance=spec.guidance
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(place, lambda draft: image.save(draft, format="PNG"))
    return {}


# --- what was drawn -----------------------------------------------------------------------------------------


def look_at(
    scorer: ImageScorer,
    rows: Sequence[PictureRow],
    liked: Sequence[PictureRow],
    drawings: Path,
    notes: Notes,
    control: Control,
) -> None:
    """Score how well each drawing fits the person's own prompt and the pictures that they kept."""
    faces = []
    for row in liked:
        control.check()
        with contextlib.suppress(UnusableRow):
            faces.append(scorer.embed(row.chosen.source))
    for row in rows:
        for side in range(len(SIDES)):
            control.check()
            picture = picture_file(drawings, side, row.id)
            with contextlib.suppress(UnusableRow):  # a prompt that is too long for the model that looks
                notes.take(side, row.id, {"text_similarity": scorer.score(picture, row.caption)})
            if faces:
                face = scorer.embed(picture)
                near = sum(float(face @ other) for other in faces) / len(faces)
                notes.take(side, row.id, {"kept_similarity": near})


def by_taste(
    scorer: ImageScorer | None,
    rows: Sequence[PictureRow],
    compared: Sequence[PictureRow],
    drawings: Path,
    notes: Notes,
    control: Control,
) -> str:
    """Score each drawing by the person's taste, where it is known; returns a sentence about it."""

    def vector_of(picture: Picture) -> Vector:
        control.check()
        vector = looks(decode(picture))
        return (
            vector
            if scorer is None
            else np.concatenate([vector, OF_SCORER * scorer.embed(picture.source).numpy()])
        )

    pairs = []
    for row in compared:
        with contextlib.suppress(UnusableRow):
            assert row.rejected is not None
            # of one picture that was picked over several the pairs are one choice
            pairs.append(
                Comparison(vector_of(row.chosen), vector_of(row.rejected), (row.caption, row.chosen.sha256))
            )
    taste = learn(pairs)
    for row in rows if taste.known else ():
        for side in range(len(SIDES)):
            picture = picture_at(picture_file(drawings, side, row.id))
            notes.take(side, row.id, {"taste": taste.score(vector_of(picture))})
    return taste.sentence


def sheet(rows: Sequence[PictureRow], spec: JudgeSpec, drawings: Path) -> Image.Image:
    lines = []
    for row in rows:
        pictures = [
            *(decode(picture_at(picture_file(drawings, side, row.id))) for side in range(len(SIDES))),
            decode(row.chosen),
        ]
        lines.append(SheetRow(tuple(pictures), (*spec.prompts(row.id, row.caption), row.caption)))
    return contact_sheet((*SIDES, "kept by you"), lines)


class Notes:
    """The measurements, one line each in a file; an incomplete line is measured again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._answers: set[tuple[str, int, str]] = set()
        self._scores: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
        for line in file.read_text(encoding="utf-8").split("\n") if file.exists() else ():
            with contextlib.suppress(ValueError):
                name, side, id, values = json.loads(line)
                self._answers.add((name, side, id))
                self.take(side, id, values)

    def once(self, ask: Ask, version: ComparedVersion, row: PictureRow) -> None:
        """Ask, unless that was done before."""
        key = (ask.__name__, version.side, row.id)
        if key in self._answers:
            return
        values = ask(version, row)
        with self._file.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([*key, values]))  # the new line first: it ends one that was torn
        self._answers.add(key)
        self.take(version.side, row.id, values)

    def take(self, side: int, id: str, values: dict[str, float]) -> None:
        self._scores.setdefault(id, ({}, {}))[side].update(values)

    def both(self) -> dict[str, Scores]:
        """The measurements of both versions by row id."""
        return {
            id: {name: (live[name], candidate[name]) for name in live.keys() & candidate.keys()}
            for id, (live, candidate) in self._scores.items()
        }
