"""Computes the losses of a batch with the model. The mathematics is in `loss`."""

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
from comfyloop.train.image.trainable import TrainableImageModel


def denoising_error(trainable: TrainableImageModel, batch: Batch) -> Tensor:
    """Mean squared error [B] of the model's prediction for noisy pictures."""
    return _error(trainable, batch, batch.chosen, batch.chosen_frames)


def denoising_loss(trainable: TrainableImageModel, batch: Batch, gamma: float) -> Tensor:
    """The errors [B], weighted by their timesteps."""
    weights = min_snr_weights(trainable.model.scheduler, batch.timesteps, gamma)
    return denoising_error(trainable, batch) * weights.to(trainable.device)


def preference_loss(trainable: TrainableImageModel, batch: Batch, beta: float) -> PreferenceLoss:
    """Diffusion-DPO of a batch of pairs; the reference is the model before training."""
    assert batch.rejected is not None
    with torch.no_grad(), lora.reference(trainable.model, trainable.start):
        reference_chosen = _error(trainable, batch, batch.chosen, batch.chosen_frames)
        reference_rejected = _error(trainable, batch, batch.rejected, batch.rejected_frames)
    chosen = _error(trainable, batch, batch.chosen, batch.chosen_frames)
    rejected = _error(trainable, batch, batch.rejected, batch.rejected_frames)
    return diffusion_dpo(chosen, rejected, reference_chosen, reference_rejected, beta)


def _error(trainable: TrainableImageModel, batch: Batch, latents: Tensor, frames: Frames) -> Tensor:
    noising = add_noise(trainable.model.scheduler, latents, batch.noise, batch.timesteps)
    predicted = trainable.predict(noising, batch.conditions, frames)
    return squared_error(predicted, noising.target.to(trainable.device))
