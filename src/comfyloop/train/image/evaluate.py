"""Evaluates denoising and preference on held-out pictures, always at the same timesteps and noise."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from comfyloop.train.image.batches import batches
from comfyloop.train.image.objectives import denoising_error, preference_loss
from comfyloop.train.image.rows import PictureRow
from comfyloop.train.image.trainable import TrainableImageModel
from comfyloop.train.run.control import Control
from comfyloop.train.specs.image import ImageTrainSpec

BANDS = 4
"""Timesteps that each picture is looked at, one from each quarter of the schedule."""


def _looks(trainable: TrainableImageModel, rows: Sequence[PictureRow]) -> tuple[list[PictureRow], list[int]]:
    most = trainable.model.scheduler.config.num_train_timesteps
    timesteps = [int((band + 0.5) * most / BANDS) for band in range(BANDS)]
    return [row for row in rows for _ in timesteps], [t for _ in rows for t in timesteps]


@torch.no_grad()
def holdout_loss(
    trainable: TrainableImageModel, rows: Sequence[PictureRow], spec: ImageTrainSpec, control: Control
) -> float:
    """Mean squared error of the noise (or velocity) over held-out pictures and timesteps."""
    trainable.eval()
    total, count = 0.0, 0
    repeated, timesteps = _looks(trainable, rows)
    chance = random.Random(spec.seed)
    size = spec.per_device_train_batch_size
    for start in range(0, len(repeated), size):
        control.check()
        part = slice(start, start + size)
        for batch in batches(
            trainable, repeated[part], spec, chance, training=False, timesteps=timesteps[part]
        ):
            error = denoising_error(trainable, batch)
            total, count = total + float(error.sum()), count + len(error)
    trainable.train()
    return total / count


@torch.no_grad()
def pick_accuracy(
    trainable: TrainableImageModel, rows: Sequence[PictureRow], spec: ImageTrainSpec, control: Control
) -> tuple[float, float]:
    """Mean loss, and the share of held-out pairs in which the model prefers what the person picked.

    A pair's preference is the mean of its margins over the timesteps. Before training every margin is zero,
    which counts as a half.
    """
    trainable.eval()
    repeated, timesteps = _looks(trainable, rows)
    chance = random.Random(spec.seed)
    losses, margins = [], []
    for number in range(0, len(repeated), BANDS):
        control.check()
        part = slice(number, number + BANDS)
        preferences = [
            preference_loss(trainable, batch, spec.beta_dpo)
            for batch in batches(
                trainable, repeated[part], spec, chance, training=False, timesteps=timesteps[part]
            )
        ]
        losses.append(float(torch.cat([f.loss for f in preferences]).mean()))
        margins.append(float(torch.cat([f.margin for f in preferences]).mean()))
    trainable.train()
    right = [0.5 if margin == 0 else float(margin > 0) for margin in margins]
    return sum(losses) / len(losses), sum(right) / len(right)
