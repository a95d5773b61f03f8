"""Pictures of a micro-batch as tensors, grouped by size and caption length."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyloop.train.image.buckets import Fit
from comfyloop.train.image.loss import draw_noise, draw_timestep
from comfyloop.train.image.rows import Picture, PictureRow
from comfyloop.train.image.text import Conditions
from comfyloop.train.image.trainable import TrainableImageModel, caption_of
from comfyloop.train.specs.image import ImageTrainSpec

Frames = list[tuple[Picture, Fit]]


@dataclass(frozen=True)
class Batch:
    """B rows of pictures of one size.

    Attributes:
        chosen, rejected: Latents [B, 4, h, w]; `rejected` only where rows are pairs.
        noise: [B, 4, h, w], the same for both pictures of a pair.
        timesteps: [B].
        chosen_frames, rejected_frames: Each picture with how it was cut.
    """

    chosen: Tensor
    rejected: Tensor | None
    noise: Tensor
    timesteps: Tensor
    conditions: Conditions
    chosen_frames: Frames
    rejected_frames: Frames


def batches(
    trainable: TrainableImageModel,
    rows: Sequence[PictureRow],
    spec: ImageTrainSpec,
    chance: random.Random,
    *,
    training: bool = True,
    timesteps: Sequence[int] | None = None,
) -> list[Batch]:
    """Rows as batches, with noise and timesteps drawn from `chance`.

    Args:
        training: drop captions and draw from the VAE's spread, as training does.
        timesteps: one for each row instead of random ones.
    """
    groups: dict[tuple[tuple[int, int], int], list[tuple[PictureRow, str, int]]] = {}
    for number, row in enumerate(rows):
        caption = caption_of(row, spec)
        if training and chance.random() < spec.caption_dropout:
            caption = ""
        timestep = (
            draw_timestep(trainable.model.scheduler, chance) if timesteps is None else timesteps[number]
        )
        size = trainable.latents.size(row.chosen)
        groups.setdefault((size, trainable.captions.windows(caption)), []).append((row, caption, timestep))
    return [_batch(trainable, group, spec, chance, training) for group in groups.values()]


def _batch(
    trainable: TrainableImageModel,
    group: list[tuple[PictureRow, str, int]],
    spec: ImageTrainSpec,
    chance: random.Random,
    training: bool,
) -> Batch:
    generator = torch.Generator().manual_seed(chance.getrandbits(48))
    spread = generator if training else None
    latents, fit = trainable.latents, trainable.latents.fit
    chosen = torch.stack([latents.of(row.chosen, generator=spread) for row, _, _ in group])
    pairs = [(row.rejected, row.chosen) for row, _, _ in group if row.rejected is not None]
    rejected = [latents.of(worse, like=better, generator=spread) for worse, better in pairs]
    return Batch(
        chosen=chosen,
        rejected=torch.stack(rejected) if rejected else None,
        noise=draw_noise(chosen, spec.noise_offset if training else 0.0, generator),
        timesteps=torch.tensor([timestep for _, _, timestep in group]),
        conditions=Conditions.stack([trainable.captions.of(caption) for _, caption, _ in group]),
        chosen_frames=[(row.chosen, fit(row.chosen)) for row, _, _ in group],
        rejected_frames=[(worse, fit(worse, better)) for worse, better in pairs],
    )
