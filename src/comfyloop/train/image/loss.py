"""What the image model is asked to predict, and how wrong it is.

Latents are [B, 4, h, w] as the UNet sees them, timesteps [B] integers from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor


@dataclass(frozen=True)
class Noising:
    """Latents with noise on them, and what the model should say of them."""

    noisy: Tensor
    timesteps: Tensor
    target: Tensor


def add_noise(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Noising:
    """The model's own scheduler says whether it predicts the noise or the velocity (Salimans & Ho 2022)."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = noise
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    return Noising(noisy, timesteps, target)


def draw_noise(latents: Tensor, offset: float, generator: torch.Generator) -> Tensor:
    """Standard noise; `offset` moves each channel's mean too, for pictures darker or brighter than usual."""
    noise = torch.randn(latents.shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
    return noise.to(latents)


def signal_to_noise(scheduler: DDPMScheduler, timesteps: Tensor) -> Tensor:
    kept: Tensor = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return kept / (1 - kept)


def min_snr_weights(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights [B] of the losses (Hang et al. 2023): easy timesteps count no more than `gamma`; 0: all 1."""
    snr = signal_to_noise(scheduler, timesteps)
    if gamma <= 0:
        return torch.ones_like(snr)
    most = snr.clamp(max=gamma)
    return most / (snr + 1) if scheduler.config.prediction_type == "v_prediction" else most / snr


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over each picture: [B]."""
    return F.mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)


@dataclass(frozen=True)
class PreferenceLoss:
    """Per pair, [B]: the loss, and whether the model prefers what the person picked more than the reference does."""

    loss: Tensor
    right: Tensor
    margin: Tensor


def diffusion_dpo(
    picked: Tensor, over: Tensor, reference_picked: Tensor, reference_over: Tensor, beta: float
) -> PreferenceLoss:
    """Diffusion-DPO (Wallace et al. 2023, eq. 14) from squared errors [B] of model and frozen reference.

    Both pictures of a pair must have been given the same noise and timestep. `beta` stands for the paper's
    beta times T times the weight of the timestep, which is taken as constant, as its authors do.
    """
    margin = -0.5 * beta * ((picked - over) - (reference_picked - reference_over))
    return PreferenceLoss(-F.logsigmoid(margin), margin > 0, margin)
