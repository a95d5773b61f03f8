"""Single-file checkpoints load as the models that they were written from, and bad ones are refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from comfyloop.errors import ModelError
from comfyloop.train.image import checkpoint
from comfyloop.train.image.text import Captions
from tests import image_models

pytestmark = pytest.mark.slow


def test_an_sd15_file_is_the_model_it_was_written_from(tiny_sd15: Path) -> None:
    torch.manual_seed(1)
    unet, _ = image_models.tiny_unet("sd15")
    model = checkpoint.load(tiny_sd15)
    assert model.family == "sd15" and model.latent_scale == 1.0
    assert model.scheduler.config.prediction_type == "epsilon"
    assert model.denoiser.config.sample_size == 8
    assert isinstance(model.vae, AutoencoderTiny)
    x, t, states = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 768)
    with torch.no_grad():
        expected = unet.half().float()(x, t, states).sample
        assert torch.equal(model.denoiser(x, t, states).sample, expected)


def test_an_sdxl_file_is_the_model_it_was_written_from(tiny_sdxl: Path) -> None:
    torch.manual_seed(2)
    second = image_models.CLIPTextModelWithProjection(
        image_models.text_config(1280, hidden_act="gelu")
    ).eval()
    unet, _ = image_models.tiny_unet("sdxl")
    first = image_models.CLIPTextModel(image_models.text_config(768)).eval()
    vae = image_models.tiny_kl(0.13025)
    model = checkpoint.load(tiny_sdxl)
    assert model.family == "sdxl" and model.latent_scale == 0.13025
    with torch.no_grad():
        pixels = torch.randn(1, 3, 64, 64)
        expected = vae.half().float().encode(pixels).latent_dist.mean
        assert torch.allclose(model.vae.encode(pixels).latent_dist.mean, expected, atol=1e-6)
        conditions = Captions(model, None).of("a red fox")
        ids = (
            model.text_encoders[0].tokenizer("a red fox", padding="max_length", return_tensors="pt").input_ids
        )
        padded = ids.masked_fill((ids == 49407).cumsum(1) > 1, 0)
        states = [
            first.half().float()(ids, output_hidden_states=True).hidden_states[-2],
            (out := second.half().float()(padded, output_hidden_states=True)).hidden_states[-2],
        ]
        assert torch.allclose(conditions.states, torch.cat(states, -1), atol=1e-5)
        assert conditions.pooled is not None and torch.allclose(conditions.pooled, out.text_embeds, atol=1e-5)
        x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
        extra = {"text_embeds": out.text_embeds, "time_ids": torch.ones(1, 6)}
        wanted = unet.half().float()(x, t, conditions.states, added_cond_kwargs=extra).sample
        assert torch.equal(model.denoiser(x, t, conditions.states, added_cond_kwargs=extra).sample, wanted)


def test_a_diffusers_folder_is_read_without_a_network(tiny_sd15: Path, tmp_path: Path) -> None:
    model = checkpoint.load(tiny_sd15)
    folder = tmp_path / "folder"
    model.denoiser.save_pretrained(folder / "unet")
    model.vae.save_pretrained(folder / "vae")
    model.scheduler.save_pretrained(folder / "scheduler")
    model.text_encoders[0].model.save_pretrained(folder / "text_encoder")
    model.text_encoders[0].tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": []}')
    again = checkpoint.load(folder)
    captions = [Captions(m, None).of("你好, a fox") for m in (model, again)]
    assert torch.allclose(captions[0].states, captions[1].states, atol=1e-6)
    for one, other in zip(model.denoiser.parameters(), again.denoiser.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_long_caption_is_read_in_windows(tiny_sd15: Path) -> None:
    captions = Captions(checkpoint.load(tiny_sd15), None)
    assert captions.of("fox " * 75).states.shape == (1, 77, 768)
    assert captions.of("fox " * 76).states.shape == (1, 154, 768)
    assert captions.of("").states.shape == (1, 77, 768)


def refused(place: Path, *words: str) -> None:
    with pytest.raises(ModelError) as error:
        checkpoint.load(place)
    assert all(word in str(error.value) for word in words), error.value


def test_what_is_no_checkpoint_is_refused_in_a_sentence(tiny_sd15: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "There is no checkpoint")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_sd15.read_bytes()[:100_000])
    refused(cut, "cut.safetensors", "not a whole safetensors file")
    pickle = tmp_path / "old.ckpt"
    pickle.write_bytes(b"x")
    refused(pickle, "pickle", "Convert it")
    for name, key, words in (
        ("lora", "lora_unet_x.lora_down.weight", ("It is a LoRA",)),
        ("flux", "model.diffusion_model.double_blocks.0.img_attn.qkv.weight", ("Flux", "diffusers folder")),
        ("other", "layers.0.weight", ("no UNet",)),
    ):
        place = tmp_path / f"{name}.safetensors"
        save_file({key: torch.zeros(4, 4)}, place)
        refused(place, place.name, *words)
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "model_index.json")


def test_a_missing_vae_is_named_and_may_come_from_elsewhere(tiny_sd15: Path, tmp_path: Path) -> None:
    bare = image_models.make_tiny_sd15(tmp_path / "bare.safetensors", vae=False)
    refused(bare, "has no VAE", "`vae`")
    vae = tmp_path / "vae.safetensors"
    parts = {n: t for n, t in load_file(tiny_sd15).items() if n.startswith("first_stage_model.")}
    save_file({n.removeprefix("first_stage_model."): t for n, t in parts.items()}, vae)
    for place in (vae, tiny_sd15):
        model = checkpoint.load(bare, vae=place)
        expected = checkpoint.load(tiny_sd15).vae
        for one, other in zip(model.vae.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)


def test_missing_tensors_are_named(tiny_sd15: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_sd15)
    del tensors["model.diffusion_model.middle_block.1.norm.weight"]
    save_file(tensors, tmp_path / "holes.safetensors")
    refused(tmp_path / "holes.safetensors", "UNet lacks mid_block.attentions.0.norm.weight")
