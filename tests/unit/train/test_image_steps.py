"""One step of each recipe against the mathematics it is published with, on the same noise."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
    compute_snr,
)
from PIL import Image

from comfyloop.train.image import kohya, lora
from comfyloop.train.image.batches import batches
from comfyloop.train.image.checkpoint import SCHEDULE
from comfyloop.train.image.loss import add_noise, draw_noise, draw_timestep, min_snr_weights
from comfyloop.train.image.objectives import denoising_loss, preference_loss
from comfyloop.train.image.render import draw
from comfyloop.train.image.rows import PictureRow, read_rows
from comfyloop.train.image.trainable import TrainableImageModel, prepare
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.specs.image import ImageTrainSpec
from tests import image_models

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pairs of noisy pictures of one size."""
    chance = np.random.default_rng(3)
    rows = []
    for i in range(4):
        for side in ("good", "bad"):
            pixels = chance.integers(0, 255, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{side}{i}.png")
        prompt = [{"role": "user", "content": f"picture {i}"}]
        rows.append({"messages": prompt, "chosen": f"good{i}.png", "rejected": f"bad{i}.png"})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def student_of(model: Path, folder: Path, **values: object) -> tuple[TrainableImageModel, ImageTrainSpec]:
    told = {"model": str(model), "train": "train.jsonl", "dtype": "float32", "caption_dropout": 0.0, **values}
    spec = ImageTrainSpec.model_validate(told)
    torch.manual_seed(spec.seed)
    trainable = prepare(RunDirectory(folder), spec)
    stir(trainable)
    return trainable, spec


def stir(trainable: TrainableImageModel) -> None:
    """A LoRA that changes something: a fresh one is zero, which would hide half of the mathematics."""
    for _, parameter in lora.trainable(trainable.model):
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))


def rows_of(data: Path, *, pairs: bool) -> list[PictureRow]:
    rows, bad = read_rows(data, pairs=pairs, max_image_pixels=10**8)
    assert not bad
    return rows


def gradients(trainable: TrainableImageModel) -> torch.Tensor:
    grads = [p.grad for _, p in lora.trainable(trainable.model) if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    for _, parameter in lora.trainable(trainable.model):
        parameter.grad = None
    return flat


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_image_sft_is_the_training_example_of_diffusers(
    family: str, prediction: str, data: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"tiny_{family}")
    trainable, spec = student_of(model, data.parent, prediction_type=prediction)
    (batch,) = batches(trainable, rows_of(data, pairs=False), spec, random.Random(1))
    for gamma in (0.0, 5.0):
        ours = denoising_loss(trainable, batch, gamma).mean()
        ours.backward()
        our_gradients = gradients(trainable)

        # examples/text_to_image/train_text_to_image_lora(_sdxl).py: the body of its training loop
        scheduler, unet = trainable.model.scheduler, trainable.model.denoiser
        noisy_latents = scheduler.add_noise(batch.chosen, batch.noise, batch.timesteps)
        if scheduler.config.prediction_type == "epsilon":
            target = batch.noise
        else:
            target = scheduler.get_velocity(batch.chosen, batch.noise, batch.timesteps)
        conditions = None
        if family == "sdxl":
            add_time_ids = torch.tensor([[64, 64, 0, 0, 64, 64]] * 4, dtype=torch.float32)
            conditions = {"time_ids": add_time_ids, "text_embeds": batch.conditions.pooled}
        model_pred = unet(
            noisy_latents,
            batch.timesteps,
            batch.conditions.states,
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]
        if gamma == 0:
            loss = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
        else:
            snr = compute_snr(scheduler, batch.timesteps)
            weights = torch.stack([snr, gamma * torch.ones_like(batch.timesteps)], dim=1).min(dim=1)[0]
            weights = weights / (snr if prediction == "epsilon" else snr + 1)
            loss = F.mse_loss(model_pred.float(), target.float(), reduction="none")
            loss = loss.mean(dim=list(range(1, len(loss.shape)))) * weights
            loss = loss.mean()
        loss.backward()
        assert float(ours) == pytest.approx(float(loss), abs=1e-5, rel=1e-5)
        assert torch.allclose(our_gradients, gradients(trainable), atol=1e-5)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_image_dpo_is_the_published_loss(family: str, data: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(f"tiny_{family}")
    trainable, spec = student_of(model, data.parent, recipe="image_dpo", beta_dpo=500.0)
    (batch,) = batches(trainable, rows_of(data, pairs=True), spec, random.Random(1))
    found = preference_loss(trainable, batch, spec.beta_dpo)
    found.loss.mean().backward()
    our_gradients = gradients(trainable)

    # Wallace et al.'s train.py: pairs are stacked, noise and timesteps repeated, losses split again
    assert batch.rejected is not None
    scheduler, unet = trainable.model.scheduler, trainable.model.denoiser
    latents = torch.cat([batch.chosen, batch.rejected])
    noise, timesteps = batch.noise.repeat(2, 1, 1, 1), batch.timesteps.repeat(2)
    states = batch.conditions.states.repeat(2, 1, 1)
    conditions = None
    if batch.conditions.pooled is not None:
        conditions = {
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 8),
            "text_embeds": batch.conditions.pooled.repeat(2, 1),
        }
    noisy = scheduler.add_noise(latents, noise, timesteps)
    model_pred = unet(noisy, timesteps, states, added_cond_kwargs=conditions).sample
    model_losses = (model_pred - noise).pow(2).mean(dim=[1, 2, 3])
    model_losses_w, model_losses_l = model_losses.chunk(2)
    with torch.no_grad():
        unet.disable_adapters()
        ref_pred = unet(noisy, timesteps, states, added_cond_kwargs=conditions).sample
        unet.enable_adapters()
    ref_losses_w, ref_losses_l = (ref_pred - noise).pow(2).mean(dim=[1, 2, 3]).chunk(2)
    scale_term = -0.5 * spec.beta_dpo
    inside_term = scale_term * ((model_losses_w - model_losses_l) - (ref_losses_w - ref_losses_l))
    loss = -1 * F.logsigmoid(inside_term).mean()
    loss.backward()
    # The margin is 250 times a difference of losses that are rounded to some 1e-7, otherwise in stacked batches.
    assert float(found.loss.mean()) == pytest.approx(float(loss), abs=5e-5)
    assert torch.equal(found.right, inside_term > 0)
    assert torch.allclose(our_gradients, gradients(trainable), atol=1e-5)


def test_the_reference_of_a_later_version_is_its_parent(tiny_sd15: Path, data: Path) -> None:
    parent, _ = student_of(tiny_sd15, data.parent)
    parent.save(data.parent / "parent")
    adapter = {"init_from": str(data.parent / "parent" / kohya.FILE)}
    child, spec = student_of(tiny_sd15, data.parent, recipe="image_dpo", adapter=adapter)
    torch.manual_seed(0)
    x, t, states = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 768)
    with torch.no_grad():
        lora.read_into(parent.model, kohya.tensors(parent.model), "itself")  # rounded to what a file holds
        expected = parent.model.denoiser(x, t, states).sample
        trained = child.model.denoiser(x, t, states).sample
        with lora.reference(child.model, child.start):
            assert torch.equal(child.model.denoiser(x, t, states).sample, expected)
        assert torch.equal(child.model.denoiser(x, t, states).sample, trained)
    assert not torch.allclose(trained, expected)
    (batch,) = batches(child, rows_of(data, pairs=True), spec, random.Random(1))
    preference_loss(child, batch, spec.beta_dpo).loss.mean().backward()
    assert gradients(child).abs().max() > 0


def test_noise_offset_moves_whole_channels() -> None:
    latents = torch.zeros(64, 4, 16, 16)
    plain = draw_noise(latents, 0.0, torch.Generator().manual_seed(0)).mean((2, 3)).std()
    moved = draw_noise(latents, 0.5, torch.Generator().manual_seed(0)).mean((2, 3)).std()
    assert float(plain) == pytest.approx(1 / 16, rel=0.2) and float(moved) == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_flow_matching_is_the_training_example_of_diffusers(family: str, data: Path) -> None:
    place = image_models.make_tiny_flow(data.parent / family, family)
    trainable, spec = student_of(place, data.parent, resolution=64)
    (batch,) = batches(trainable, rows_of(data, pairs=False), spec, random.Random(1))
    ours = denoising_loss(trainable, batch, 5.0).mean()
    ours.backward()
    our_gradients = gradients(trainable)

    # examples/dreambooth/train_dreambooth_lora_sd3.py and _flux.py: the body of their training loops
    transformer, scheduler = trainable.model.denoiser, trainable.model.scheduler
    model_input, noise = batch.chosen, batch.noise
    timesteps = scheduler.timesteps[batch.timesteps]
    step_indices = [(scheduler.timesteps == t).nonzero().item() for t in timesteps]
    sigmas = scheduler.sigmas[step_indices].flatten()[:, None, None, None]
    noisy_model_input = (1.0 - sigmas) * model_input + sigmas * noise
    states, pooled = batch.conditions.states, batch.conditions.pooled
    if family == "sd3":
        model_pred = transformer(noisy_model_input, states, pooled, timesteps).sample
    else:
        model_pred = transformer(
            hidden_states=FluxPipeline._pack_latents(noisy_model_input, 4, 16, 8, 8),
            timestep=timesteps / 1000,
            guidance=torch.full((4,), 3.5),
            pooled_projections=pooled,
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(4, 4, 4, "cpu", torch.float32),
        ).sample
        model_pred = FluxPipeline._unpack_latents(model_pred, 64, 64, 8)
    weighting = compute_loss_weighting_for_sd3("logit_normal", sigmas)
    target = noise - model_input
    loss = torch.mean(
        (weighting.float() * (model_pred.float() - target.float()) ** 2).reshape(4, -1), 1
    ).mean()
    loss.backward()
    assert float(ours) == pytest.approx(float(loss), abs=1e-5)
    assert torch.allclose(our_gradients, gradients(trainable), atol=1e-5)
    assert our_gradients.abs().max() > 0
    trainable.save(data.parent / "adapter")
    names, metadata = kohya.read(data.parent / "adapter" / kohya.FILE)
    assert all(name.startswith("lora_transformer_") for name in names)
    assert metadata["ss_base_model_version"] == {"sd3": "sd3", "flux": "flux1"}[family]


def test_flow_timesteps_are_logit_normal() -> None:
    chance = random.Random(0)
    scheduler = FlowMatchEulerDiscreteScheduler()
    drawn = [draw_timestep(scheduler, chance) / 1000 for _ in range(4000)]
    theirs = compute_density_for_timestep_sampling("logit_normal", 4000, 0.0, 1.0)
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(theirs, [0.1, 0.5, 0.9]), abs=0.03
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero", [False, True])
def test_min_snr_weights_are_numbers_at_every_timestep(prediction: str, zero: bool) -> None:
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type=prediction, rescale_betas_zero_snr=zero)
    timesteps = torch.arange(1000)
    weights = min_snr_weights(scheduler, timesteps, 5.0)
    assert torch.isfinite(weights).all() and (weights >= 0).all()
    snr = compute_snr(scheduler, timesteps)
    most = snr.clamp(max=5.0)
    divided = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(1000)}[prediction]
    there = snr > 0
    assert int((~there).sum()) == int(zero)
    torch.testing.assert_close(weights[there], (most / divided)[there])
    assert not zero or float(weights[-1]) == (1.0 if prediction == "epsilon" else 0.0)


def test_a_model_of_the_picture_itself_is_taught_the_picture() -> None:
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type="sample")
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    noising = add_noise(scheduler, latents, noise, torch.tensor([10, 900]))
    assert torch.equal(noising.target, latents)
    assert torch.equal(noising.noisy, scheduler.add_noise(latents, noise, torch.tensor([10, 900])))


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_what_a_model_with_zero_terminal_snr_learns_it_draws(
    prediction: str, tiny_sd15: Path, data: Path
) -> None:
    trainable, spec = student_of(tiny_sd15, data.parent, prediction_type=prediction)
    trainable.model.scheduler = DDPMScheduler(
        **SCHEDULE, prediction_type=prediction, rescale_betas_zero_snr=True
    )
    rows = rows_of(data, pairs=False)
    (batch,) = batches(trainable, rows, spec, random.Random(1), timesteps=[0, 500, 998, 999])
    loss = denoising_loss(trainable, batch, 5.0).mean()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(gradients(trainable)).all()
    drawn = draw(trainable, "a fox", 1, size=(64, 64), steps=2)
    assert np.asarray(drawn).std() > 0
