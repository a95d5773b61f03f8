"""The losses of a batch, by asking the model. The mathematics is in `loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from comfyloop.train.image import lora
from comfyloop.train.image.batches import Batch, Frames
from comfyloop.train.image.loss import (
    PreferenceLoss,
    add_noise,
    diffusion_dpo,
    min_snr_weights,
    squared_error,
)
from comfyloop.train.image.student import Student


def denoising_error(student: Student, batch: Batch) -> Tensor:
    """Mean squared error [B] of what the model says of the noisy pictures."""
    return _error(student, batch, batch.picked, batch.picked_frames)


def denoising_loss(student: Student, batch: Batch, gamma: float) -> Tensor:
    """The errors [B], weighted by their timesteps."""
    weights = min_snr_weights(student.model.scheduler, batch.timesteps, gamma)
    return denoising_error(student, batch) * weights.to(student.device)


def preference_loss(student: Student, batch: Batch, beta: float) -> PreferenceLoss:
    """Diffusion-DPO of a batch of pairs; the reference is the model as training found it."""
    assert batch.over is not None
    with torch.no_grad(), lora.reference(student.model, student.start):
        reference_picked = _error(student, batch, batch.picked, batch.picked_frames)
        reference_over = _error(student, batch, batch.over, batch.over_frames)
    picked = _error(student, batch, batch.picked, batch.picked_frames)
    over = _error(student, batch, batch.over, batch.over_frames)
    return diffusion_dpo(picked, over, reference_picked, reference_over, beta)


def _error(student: Student, batch: Batch, latents: Tensor, frames: Frames) -> Tensor:
    noising = add_noise(student.model.scheduler, latents, batch.noise, batch.timesteps)
    predicted = student.predict(noising, batch.conditions, frames)
    return squared_error(predicted, noising.target.to(student.device))
