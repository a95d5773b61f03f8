"""Diffusion-DPO (Wallace et al. 2023): of two pictures for a prompt, the model learns to prefer the picked one.
Reads top to bottom."""

from __future__ import annotations

import random

import torch

from comfyloop.train.image.batches import batches
from comfyloop.train.image.evaluate import pick_accuracy
from comfyloop.train.image.objectives import preference_loss
from comfyloop.train.image.trainable import encode, fingerprint, prepare, read_pictures
from comfyloop.train.image.updates import updates_for
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.run.plan import Plan
from comfyloop.train.run.training import Training
from comfyloop.train.specs.image import ImageTrainSpec


def run(directory: RunDirectory, spec: ImageTrainSpec, log: RunLog, control: Control) -> None:
    """Train as `spec` says and leave `directory.adapter`. Raises what `image_sft.run` raises."""
    torch.manual_seed(spec.seed)

    log.phase("reading the data")
    train = read_pictures(directory, spec.train, spec, log)
    holdout = read_pictures(directory, spec.holdout, spec, log) if spec.holdout else []

    log.phase("loading the model")
    trainable = prepare(directory, spec)
    control.check()

    log.phase("looking at the pictures")
    train = encode(trainable, directory.resolve(spec.train), train, spec, log, control)
    if spec.holdout:
        holdout = encode(trainable, directory.resolve(spec.holdout), holdout, spec, log, control)

    def look() -> dict[str, float]:
        loss, accuracy = pick_accuracy(trainable, holdout, spec, control)
        return {"holdout_loss": loss, "pick_accuracy": accuracy}

    updates = updates_for(trainable, spec)
    plan = Plan.of(spec, len(train))
    training = Training(directory, spec, log, control, updates, plan, fingerprint(spec, train, trainable))
    for number, step in enumerate(training.steps(look if holdout else None), start=training.began_at):
        chance = random.Random(f"{spec.seed} {number}")  # nothing to save: a resumed step draws the same
        for indices in step.micro_batches():
            for batch in batches(trainable, [train[i] for i in indices], spec, chance):
                preference = preference_loss(trainable, batch, spec.beta_dpo)
                loss = preference.loss.sum() / len(step.samples)
                step.backward(loss)
                right = float(preference.right.sum()) / len(step.samples)
                step.add(loss=float(loss.detach()), implicit_accuracy=right)
        step.finish()

    log.phase("saving the adapter")
    updates.save_result(directory.adapter)
