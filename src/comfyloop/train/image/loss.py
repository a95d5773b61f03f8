"""Prediction targets and losses of the image model.

Latents are [B, channels, h, w] as the denoiser sees them, timesteps [B] integers from 0; those of a flow-matching
scheduler index its sigmas.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor


@dataclass(frozen=True)
class Noising:
    """Noisy latents, and the target of the model's prediction."""

    noisy: Tensor
    timesteps: Tensor
    target: Tensor


Scheduler: TypeAlias = DDPMScheduler | FlowMatchEulerDiscreteScheduler


def add_noise(scheduler: Scheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Noising:
    """The model's own scheduler says whether it predicts the noise, the velocity (Salimans & Ho 2022), the picture,
    or where a straight line from picture to noise leads (flow matching, Esser et al. 2024)."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigma = scheduler.sigmas.to(latents)[timesteps].view(-1, 1, 1, 1)
        return Noising((1 - sigma) * latents + sigma * noise, timesteps, noise - latents)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    match scheduler.config.prediction_type:
        case "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        case "sample":
            target = latents
        case _:
            target = noise
    return Noising(noisy, timesteps, target)


def draw_noise(latents: Tensor, offset: float, generator: torch.Generator) -> Tensor:
    """Standard noise; `offset` moves each channel's mean too, for pictures darker or brighter than usual."""
    noise = torch.randn(latents.shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
    return noise.to(latents)


def signal_to_noise(scheduler: DDPMScheduler, timesteps: Tensor) -> Tensor:
    signal: Tensor = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return signal / (1 - signal)


def draw_timestep(scheduler: Scheduler, chance: random.Random) -> int:
    """Uniform for a diffusion model; logit-normal for flow matching, denser in the middle (Esser et al. 2024)."""
    most: int = scheduler.config.num_train_timesteps
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return int(most / (1 + math.exp(-chance.gauss(0, 1))))
    return chance.randrange(most)


def min_snr_weights(scheduler: Scheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights [B] of the losses (Hang et al. 2023): easy timesteps count no more than `gamma`; 0: all 1.

    All 1 for flow matching too, which draws its timesteps by how hard they are. With zero terminal SNR the last
    timestep has no signal at all, which the weights take as they take little of it.
    """
    if gamma <= 0 or isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return torch.ones(len(timesteps))
    snr = signal_to_noise(scheduler, timesteps)
    match scheduler.config.prediction_type:
        case "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)
        case "sample":
            return snr.clamp(max=gamma)
        case _:
            return gamma / snr.clamp(min=gamma)


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
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> PreferenceLoss:
    """Diffusion-DPO (Wallace et al. 2023, eq. 14) from squared errors [B] of model and frozen reference.

    Both pictures of a pair must have been given the same noise and timestep. `beta` stands for the paper's
    beta times T times the weight of the timestep, which is taken as constant, as its authors do.
    """
    margin = -0.5 * beta * ((chosen - rejected) - (reference_chosen - reference_rejected))
    return PreferenceLoss(-F.logsigmoid(margin), margin > 0, margin)
