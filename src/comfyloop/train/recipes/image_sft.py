"""Supervised fine-tuning of an image model: a LoRA learns to draw what the person kept. Reads top to bottom."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from comfyloop.train.batches import Plan
from comfyloop.train.control import Control
from comfyloop.train.image import kohya
from comfyloop.train.image.evaluate import holdout_loss
from comfyloop.train.image.loss import add_noise, draw_noise, min_snr_weights, squared_error
from comfyloop.train.image.rows import PictureRow
from comfyloop.train.image.spec import ImageTrainSpec
from comfyloop.train.image.student import Student, caption_of, encode, fingerprint, prepare, read_pictures
from comfyloop.train.image.text import Conditions
from comfyloop.train.image.updates import ImageUpdates
from comfyloop.train.log import RunLog
from comfyloop.train.status import RunDirectory
from comfyloop.train.training import Training


def run(directory: RunDirectory, spec: ImageTrainSpec, log: RunLog, control: Control) -> None:
    """Train as `spec` says and leave `directory.adapter`.

    Raises:
        DataError, ModelError, InvalidInput, NotFound: before a step is taken.
        Cancelled, Terminated: a valid checkpoint has been left.
        RunFailed: the loss is no longer a number.
    """
    torch.manual_seed(spec.seed)

    log.phase("reading the data")
    train = read_pictures(directory, spec.train, spec, log, pairs=False)
    holdout = read_pictures(directory, spec.holdout, spec, log, pairs=False) if spec.holdout else []
    prior = read_pictures(directory, spec.prior, spec, log, pairs=False) if spec.prior else []

    log.phase("loading the model")
    student = prepare(directory, spec)
    control.check()

    log.phase("looking at the pictures")
    train = encode(student, directory.resolve(spec.train), train, spec, log, control)
    if spec.holdout:
        holdout = encode(student, directory.resolve(spec.holdout), holdout, spec, log, control)
    if spec.prior:
        prior = encode(student, directory.resolve(spec.prior), prior, spec, log, control)

    def look() -> dict[str, float]:
        return {"holdout_loss": holdout_loss(student, holdout, spec, control)}

    updates = ImageUpdates(student, spec)
    plan = Plan.of(spec, len(train))
    training = Training(
        directory, spec, log, control, updates, plan, fingerprint(spec, [*train, *prior], student)
    )
    for number, step in enumerate(training.steps(look if holdout else None), start=training.began_at):
        chance = random.Random(f"{spec.seed} {number}")  # nothing to save: a resumed step draws the same
        for indices in step.micro_batches():
            rows = [train[i] for i in indices]
            loss = captioned_loss(student, rows, spec, chance).sum() / len(step.samples)
            step.add(loss=float(loss.detach()))
            if prior:
                kept = chance.choices(prior, k=len(rows))
                forgetting = captioned_loss(student, kept, spec, chance).sum() / len(step.samples)
                step.add(prior_loss=float(forgetting.detach()))
                loss = loss + spec.prior_loss_weight * forgetting
            step.backward(loss)
        step.finish()

    log.phase("saving the adapter")
    updates.use_average()
    kohya.save(student.model, directory.adapter, spec.about.model_dump())


def captioned_loss(
    student: Student, rows: Sequence[PictureRow], spec: ImageTrainSpec, chance: random.Random
) -> Tensor:
    """Losses [B] of pictures at random timesteps, in the order of their sizes."""
    losses = []
    for group in same_size(student, rows, spec, chance):
        generator = torch.Generator().manual_seed(chance.getrandbits(48))
        pictures = [row.picked for row, _ in group]
        clean = torch.stack([student.latents.of(p, generator=generator) for p in pictures])
        noise = draw_noise(clean, spec.noise_offset, generator)
        steps = student.model.scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(clean),), generator=generator)
        conditions = Conditions.stack([student.captions.of(caption) for _, caption in group])
        frames = [(p, student.latents.fit(p)) for p in pictures]
        losses.append(denoising_loss(student, clean, noise, timesteps, conditions, frames, spec.snr_gamma))
    return torch.cat(losses)
