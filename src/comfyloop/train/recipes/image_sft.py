"""Supervised fine-tuning of an image model: a LoRA learns to draw what the person kept. Reads top to bottom."""

from __future__ import annotations

import random

import torch

from comfyloop.train.image.batches import batches
from comfyloop.train.image.evaluate import holdout_loss
from comfyloop.train.image.objectives import denoising_loss
from comfyloop.train.image.prior import draw_prior
from comfyloop.train.image.trainable import encode, fingerprint, prepare, read_pictures
from comfyloop.train.image.updates import updates_for
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.run.plan import Plan
from comfyloop.train.run.training import Training
from comfyloop.train.specs.image import ImageTrainSpec


def run(directory: RunDirectory, spec: ImageTrainSpec, log: RunLog, control: Control) -> None:
    """Train as `spec` says and leave `directory.adapter`.

    Raises:
        DataError, ModelError, InvalidInput, NotFound: before a step is taken.
        Cancelled, Terminated: a valid checkpoint has been left.
        RunFailed: the loss is no longer a number.
    """
    torch.manual_seed(spec.seed)

    log.phase("reading the data")
    files = {"train": spec.train, "holdout": spec.holdout, "prior": spec.prior}
    rows = {n: read_pictures(directory, file, spec, log) if file else [] for n, file in files.items()}

    log.phase("loading the model")
    student = prepare(directory, spec)
    control.check()

    log.phase("looking at the pictures")
    train, holdout, prior = (
        encode(student, directory.resolve(file), rows[name], spec, log, control) if file else []
        for name, file in files.items()
    )

    if spec.prior_images:
        log.phase("drawing pictures against forgetting")
        prior = draw_prior(student, train, spec.prior_images, directory.path / "prior", log, control)
        prior = encode(student, directory.path / "prior", prior, spec, log, control)

    def look() -> dict[str, float]:
        return {"holdout_loss": holdout_loss(student, holdout, spec, control)}

    updates = updates_for(student, spec)
    plan = Plan.of(spec, len(train))
    mark = fingerprint(spec, [*train, *prior], student)
    training = Training(directory, spec, log, control, updates, plan, mark)
    for number, step in enumerate(training.steps(look if holdout else None), start=training.began_at):
        chance = random.Random(f"{spec.seed} {number}")  # nothing to save: a resumed step draws the same
        for indices in step.micro_batches():
            for batch in batches(student, [train[i] for i in indices], spec, chance):
                loss = denoising_loss(student, batch, spec.snr_gamma).sum() / len(step.samples)
                step.backward(loss)
                step.add(loss=float(loss.detach()))
            for batch in batches(
                student, chance.choices(prior, k=len(indices)) if prior else [], spec, chance
            ):
                loss = denoising_loss(student, batch, spec.snr_gamma).sum() / len(step.samples)
                step.backward(spec.prior_loss_weight * loss)
                step.add(prior_loss=float(loss.detach()))
        step.finish()

    log.phase("saving the adapter")
    updates.save_result(directory.adapter)
