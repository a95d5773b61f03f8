"""Loads an image model in the forms that ComfyUI uses: one safetensors file (SD1.5, SD2, SDXL), or a diffusers
folder.

Nothing is downloaded: a single file's configuration is derived from its tensors
(`comfyloop.stable_diffusion.shapes`) and the tokenizer is bundled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import (
    DDPMScheduler,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from comfyloop.errors import ModelError
from comfyloop.files import there
from comfyloop.stable_diffusion import layout, shapes, tokenizer
from comfyloop.stable_diffusion.folder import read_folder, read_json
from comfyloop.stable_diffusion.kinds import (
    Objective,
    Prediction,
    objective_of_file,
    refuse_other_inputs,
)
from comfyloop.stable_diffusion.shapes import Family
from comfyloop.train.image import flow
from comfyloop.train.image.model import ImageModel, TextEncoder, read_scheduler, read_tokenizer
from comfyloop.train.image.vae import load_vae, vae_of
from comfyloop.train.image.weights import building, fill, read_part, read_tensors

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
"""The noise schedule of every Stable Diffusion up to XL."""

_NEEDS = "Name a .safetensors checkpoint of SD1.5, SD2 or SDXL, or a diffusers folder."


def load(
    place: Path,
    vae: Path | None = None,
    prediction: Prediction | None = None,
    dtype: torch.dtype = torch.float32,
) -> ImageModel:
    """Read a model onto the CPU.

    Args:
        place: a .safetensors file or a diffusers folder.
        vae: a file or folder with another VAE, for checkpoints that have none.
        prediction: what the UNet predicts, where the file itself does not tell.
        dtype: of SD3's and Flux's transformer and text encoders; all else is read in float32.

    Raises:
        ModelError: it does not exist, is damaged, of another kind, or a part is missing; says which.
    """
    if there(str(place)) is None:
        raise ModelError(f"There is no checkpoint {str(place)[:300]}.", _NEEDS)
    if place.is_dir():
        model = _from_folder(place, dtype)
    elif place.is_file():
        model = _from_file(place, vae, prediction)
    else:
        raise ModelError(f"{place} is no file and no folder.", _NEEDS)
    if vae is not None:
        model.vae = load_vae(vae, model.family)
    try:
        _refuse_what_does_not_belong(model)
    except ModelError as error:
        raise ModelError(f"{place} cannot be trained on. {error.message}", error.hint) from None
    if prediction is not None and not model.is_flow:
        model.scheduler.register_to_config(prediction_type=prediction)
    for module in model.modules:
        module.requires_grad_(False).eval()
    return model


def _refuse_what_does_not_belong(model: ImageModel) -> None:
    """Raise ModelError if the denoiser does not match the VAE's latents or the text encoders' states."""
    if model.is_flow:
        flow.refuse_what_does_not_belong(model)
        return
    texts, unet = [encoder.model.config for encoder in model.text_encoders], model.denoiser.config
    refuse_other_inputs(unet.in_channels, unet.out_channels, model.vae.config.latent_channels)
    pairs = [(sum(text.hidden_size for text in texts), unet.cross_attention_dim, "text states")]
    if model.family == "sdxl":
        sizes = 6 * unet.addition_time_embed_dim
        pooled_width = unet.projection_class_embeddings_input_dim
        pairs.append((texts[-1].projection_dim + sizes, pooled_width, "pooled states with sizes"))
    for width, expected, what in pairs:
        if width != expected:
            raise ModelError(
                f"Its text encoders give {what} of width {width}, and its UNet takes {expected}.",
                "Name a model whose parts belong together.",
            )


# --- a single file ------------------------------------------------------------------------------------------


def _from_file(place: Path, vae: Path | None, prediction: Prediction | None) -> ImageModel:
    tensors = read_tensors(place)
    with safe_open(place, "pt") as file:
        metadata = file.metadata() or {}
    shape_of = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with building(place):
        family = shapes.family(shape_of)
        objective = objective_of_file(tensors, metadata, prediction)
        if objective is None:
            objective = Objective("v_prediction" if _predicts_v(tensors, family) else "epsilon")
        unet = _unet(tensors, shape_of, family)
        encoders = _text_encoders(tensors, shape_of, family)
        coder = vae_of(tensors, shape_of, family) if vae is None and shapes.has_vae(shape_of) else None
    if coder is None and vae is None:
        raise ModelError(f"{place.name} has no VAE with an encoder in it.", "Name one in the spec's `vae`.")
    scheduler = DDPMScheduler(
        **SCHEDULE,
        prediction_type=objective.prediction,
        rescale_betas_zero_snr=objective.zero_terminal_snr,
    )
    side = native_side(metadata)
    if side is not None:
        unet.register_to_config(sample_size=side // 8)
    return ImageModel(family, unet, coder, encoders, scheduler)


def native_side(metadata: Mapping[str, str]) -> int | None:
    """The side from the file's `modelspec.resolution` ("1024x1024"); None if it is missing."""
    resolution = re.fullmatch(r"(\d{2,5})x(\d{2,5})", metadata.get("modelspec.resolution", ""), re.ASCII)
    return min(int(resolution[1]), int(resolution[2])) if resolution else None


def _predicts_v(tensors: Mapping[str, Tensor], family: Family) -> bool:
    """SD2 files carry no marker: ComfyUI tells by the spread of one norm."""
    norm = tensors.get(f"{layout.UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias")
    return family == "sd2" and norm is not None and float(norm.float().std(unbiased=False)) > 0.09


def _unet(tensors: Mapping[str, Tensor], shape_of: shapes.Shapes, family: Family) -> UNet2DConditionModel:
    config, shape = shapes.unet(shape_of, family)
    modules = layout.unet_modules(shape)
    at = layout.UNET_PREFIX
    state = {
        layout.rename(name.removeprefix(at), modules): tensor
        for name, tensor in tensors.items()
        if name.startswith(at)
    }
    unet = UNet2DConditionModel(**config)
    fill(unet, state, "UNet")
    return unet


def _text_encoders(
    tensors: Mapping[str, Tensor], shape_of: shapes.Shapes, family: Family
) -> list[TextEncoder]:
    encoders = []
    first = shapes.clip(shape_of)
    if first is not None:
        prefix, config = first
        model = CLIPTextModel(CLIPTextConfig(**config))
        state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        _fill_text(model, state)
        encoders.append(TextEncoder(tokenizer.load(), model))
    second = shapes.open_clip(shape_of)
    if second is not None:
        prefix, config = second
        projected = CLIPTextModelWithProjection if family == "sdxl" else CLIPTextModel
        # SD2 takes the last layer but one and normalises it: the same model without its last layer
        if family == "sd2" and config["num_hidden_layers"] == 24:
            config["num_hidden_layers"] = 23
        model = projected(CLIPTextConfig(**config))
        state = convert_open_clip_checkpoint(model, dict(tensors), prefix=prefix)
        _fill_text(model, state)
        # SDXL's second encoder pads with token 0, which is "!"; SD2's too
        encoders.append(TextEncoder(tokenizer.load(pad_token="!"), model))
    expected = 2 if family == "sdxl" else 1
    if len(encoders) != expected:
        raise ModelError(
            f"It has {len(encoders)} of the {expected} text encoders that its UNet was trained with.",
            "Name a checkpoint that has them, or a diffusers folder.",
        )
    return encoders


def _fill_text(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    flat = not any(name.startswith("text_model.") for name in own)
    renamed = {name.removeprefix("text_model.") if flat else name: tensor for name, tensor in state.items()}
    projection = "text_projection.weight"
    if projection in own and projection not in renamed:
        renamed[projection] = torch.eye(*own[projection].shape)
    fill(model, {name: tensor for name, tensor in renamed.items() if name in own}, "text encoder")


# --- a diffusers folder -------------------------------------------------------------------------------------


def _from_folder(place: Path, dtype: torch.dtype) -> ImageModel:
    folder = read_folder(place)
    try:
        if folder.family == "sd3" or folder.family == "flux":
            return flow.load(place, folder.family, dtype)
        scheduler = read_scheduler(DDPMScheduler, place)
        vae = load_vae(place / "vae", folder.family)
        unet = read_part(UNet2DConditionModel, place / "unet")
        encoders = [_encoder(place, suffix) for suffix in ("", "_2")[: 2 if folder.family == "sdxl" else 1]]
    except ModelError as error:
        raise ModelError(f"{place} cannot be trained on. {error.message}", error.hint) from None
    return ImageModel(folder.family, unet, vae, encoders, scheduler)


def _encoder(place: Path, suffix: str) -> TextEncoder:
    config = read_json(place / f"text_encoder{suffix}/config.json")
    projected = bool(suffix) or "CLIPTextModelWithProjection" in (config.get("architectures") or ())
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    model = read_part(kind, place / f"text_encoder{suffix}", torch.float32)
    return TextEncoder(read_tokenizer(CLIPTokenizer, place / f"tokenizer{suffix}", model), model)
