"""An image model as ComfyUI has it: one safetensors file (SD1.5, SD2, SDXL), or a diffusers folder.

Nothing is fetched: a single file's configuration follows from its tensors (`comfyloop.stable_diffusion.shapes`)
and the tokenizer is bundled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_open_clip_checkpoint
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from comfyloop.errors import ModelError
from comfyloop.stable_diffusion import layout, shapes, tokenizer
from comfyloop.stable_diffusion.shapes import Family

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
"""The noise schedule of every Stable Diffusion up to XL."""

Prediction = Literal["epsilon", "v_prediction"]
ImageFamily = Family | Literal["sd3", "flux"]
_NEEDS = "Name a .safetensors checkpoint of SD1.5, SD2 or SDXL, or a diffusers folder."


@dataclass
class TextEncoder:
    tokenizer: CLIPTokenizer
    model: Any  # CLIPTextModel or CLIPTextModelWithProjection


@dataclass
class ImageModel:
    """The parts of a latent diffusion model, all frozen and in evaluation mode.

    Attributes:
        denoiser: a UNet, or the transformer of SD3 and Flux (`flow.py`).
        pipeline: the diffusers pipeline of the same parts, which encodes prompts for those two.
        latent_scale, latent_shift: a latent that the denoiser sees is (encoded - shift) * scale.
    """

    family: ImageFamily
    denoiser: Any
    vae: AutoencoderKL | AutoencoderTiny
    text_encoders: list[TextEncoder]
    scheduler: Any  # DDPMScheduler, or FlowMatchEulerDiscreteScheduler
    pipeline: Any = None

    @property
    def latent_scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def latent_shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)

    @property
    def is_flow(self) -> bool:
        return self.family in ("sd3", "flux")

    @property
    def modules(self) -> list[nn.Module]:
        return [self.denoiser, self.vae, *(encoder.model for encoder in self.text_encoders)]


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
    if place.is_dir():
        model = _from_folder(place, dtype)
    elif place.is_file():
        model = _from_file(place, vae)
    else:
        raise ModelError(f"There is no checkpoint {place}.", _NEEDS)
    if vae is not None:
        model.vae = load_vae(vae, model.family)
    if prediction is not None and not model.is_flow:
        model.scheduler.register_to_config(prediction_type=prediction)
    for module in model.modules:
        module.requires_grad_(False).eval()
    return model


def read_tensors(place: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ModelError when it is not one, or is cut off."""
    if place.suffix in {".ckpt", ".pt", ".pth", ".bin"}:
        raise ModelError(
            f"{place.name} is a pickle, which runs code when it is read, and is never loaded.",
            "Convert it to safetensors; ComfyUI's ModelSave node does that.",
        )
    try:
        with safe_open(place, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{place} is not a whole safetensors file ({error}).", "Download or copy it again."
        ) from None


# --- a single file ------------------------------------------------------------------------------------------


def _from_file(place: Path, vae: Path | None) -> ImageModel:
    tensors = read_tensors(place)
    known = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        family = shapes.family(known)
        unet = _unet(tensors, known, family)
        encoders = _text_encoders(tensors, known, family)
        coder = None if vae is not None else _vae(tensors, known, family)
    except KeyError as error:
        raise ModelError(f"{place.name} lacks the tensor {error.args[0]}.", "Download it again.") from None
    except ModelError as error:
        raise ModelError(f"{place.name} cannot be trained on. {error.message}", error.mend) from None
    if coder is None and vae is None:
        raise ModelError(f"{place.name} has no VAE in it.", "Name one in the spec's `vae`.")
    predicts = "v_prediction" if _predicts_v(tensors, family) else "epsilon"
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type=predicts)
    side = _native_side(place)
    if side is not None:
        unet.register_to_config(sample_size=side // 8)
    return ImageModel(family, unet, coder, encoders, scheduler)


def _native_side(place: Path) -> int | None:
    """What the file says of itself under `modelspec.resolution` ("1024x1024"); None when it does not."""
    with safe_open(place, "pt") as file:
        said = (file.metadata() or {}).get("modelspec.resolution", "")
    width, _, height = said.partition("x")
    return min(int(width), int(height)) if width.isdigit() and height.isdigit() else None


def _predicts_v(tensors: Mapping[str, Tensor], family: Family) -> bool:
    """As ComfyUI tells: by a marker in SDXL files, by the spread of one norm in SD2 files."""
    if family == "sdxl":
        return "v_pred" in tensors
    norm = tensors.get(f"{layout.UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias")
    return family == "sd2" and norm is not None and float(norm.float().std(unbiased=False)) > 0.09


def _unet(tensors: Mapping[str, Tensor], known: shapes.Shapes, family: Family) -> UNet2DConditionModel:
    config, shape = shapes.unet(known, family)
    modules = layout.unet_modules(shape)
    at = layout.UNET_PREFIX
    state = {
        layout.rename(name.removeprefix(at), modules): tensor
        for name, tensor in tensors.items()
        if name.startswith(at)
    }
    unet = UNet2DConditionModel(**config)
    _fill(unet, state, "UNet")
    return unet


def _vae(
    tensors: Mapping[str, Tensor], known: shapes.Shapes, family: Family
) -> AutoencoderKL | AutoencoderTiny | None:
    at = shapes.VAE_PREFIX
    if any(name.startswith(f"{at}taesd_decoder.") for name in known):
        return _taesd({name.removeprefix(at): t for name, t in tensors.items() if name.startswith(at)})
    config = shapes.vae(known, family)
    if config is None:
        return None
    vae = AutoencoderKL(**config)
    _fill(vae, convert_ldm_vae_checkpoint(dict(tensors), config), "VAE")
    return vae


def _taesd(tensors: Mapping[str, Tensor]) -> AutoencoderTiny:
    """ComfyUI's names for a tiny autoencoder; its decoder counts the clamp in front of the layers."""
    state = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part in {"taesd_encoder", "taesd_decoder"}:
            number, _, rest = rest.partition(".")
            side = part.removeprefix("taesd_")
            state[f"{side}.layers.{int(number) - (side == 'decoder')}.{rest}"] = tensor
    # ComfyUI hands the UNet (encoded / vae_scale + vae_shift) * 0.18215
    scale, shift = (
        float(tensors.get(f"vae_{n}", torch.tensor(d))) for n, d in (("scale", 1.0), ("shift", 0.0))
    )
    if shift != 0:
        raise ModelError("Its tiny VAE shifts latents, which is not supported.", "Name another VAE.")
    latent = state["encoder.layers.14.weight"].shape[0]
    vae = AutoencoderTiny(scaling_factor=round(0.18215 / scale, 6), latent_channels=latent)
    _fill(vae, state, "VAE")
    return vae


def _text_encoders(tensors: Mapping[str, Tensor], known: shapes.Shapes, family: Family) -> list[TextEncoder]:
    encoders = []
    first = shapes.clip(known)
    if first is not None:
        prefix, config = first
        model = CLIPTextModel(CLIPTextConfig(**config))
        state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        _fill_text(model, state)
        encoders.append(TextEncoder(tokenizer.load(), model))
    second = shapes.open_clip(known)
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
    wanted = 2 if family == "sdxl" else 1
    if len(encoders) != wanted:
        raise ModelError(
            f"It has {len(encoders)} of the {wanted} text encoders that its UNet was trained with.",
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
    _fill(model, {name: tensor for name, tensor in renamed.items() if name in own}, "text encoder")


def _fill(module: nn.Module, state: Mapping[str, Tensor], part: str) -> None:
    """Every tensor of the module and none besides. Raises ModelError naming what is missing or too much."""
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = sorted(own.keys() - given.keys() - {n for n in own if n.endswith("position_ids")})
    unknown = sorted(given.keys() - own.keys())
    unlike = sorted(name for name in own.keys() & given.keys() if own[name] != given[name])
    for what, names in (("lacks", missing), ("has the unknown", unknown), ("has another shape of", unlike)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"Its {part} {what} {', '.join(names[:3])}{more}.", "It may be damaged or of another kind."
            )
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)


# --- a diffusers folder -------------------------------------------------------------------------------------


def _from_folder(place: Path, dtype: torch.dtype) -> ImageModel:
    index = place / "model_index.json"
    if not index.is_file():
        raise ModelError(f"{place} is no diffusers folder: it has no model_index.json.", _NEEDS)
    parts = json.loads(index.read_text(encoding="utf-8"))
    try:
        if "transformer" in parts:
            from comfyloop.train.image import flow  # it builds on this module

            return flow.load(place, str(parts.get("_class_name")), dtype)
        unet = UNet2DConditionModel.from_pretrained(place, subfolder="unet", local_files_only=True)
        encoders = [
            TextEncoder(
                CLIPTokenizer.from_pretrained(place / f"tokenizer{suffix}", local_files_only=True),
                (CLIPTextModelWithProjection if suffix else CLIPTextModel).from_pretrained(
                    place / f"text_encoder{suffix}", local_files_only=True
                ),
            )
            for suffix in ("", "_2")
            if (place / f"text_encoder{suffix}").is_dir()
        ]
        scheduler = DDPMScheduler.from_pretrained(place, subfolder="scheduler", local_files_only=True)
        width = unet.config.cross_attention_dim
        family: Family = {768: "sd15", 1024: "sd2"}.get(width, "sdxl")  # type: ignore[assignment]
        vae = load_vae(place / "vae", family)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ModelError(f"{place} cannot be loaded: {first_line}.", "Download the folder again.") from None
    return ImageModel(family, unet, vae, encoders, scheduler)


def load_vae(place: Path, family: ImageFamily) -> AutoencoderKL | AutoencoderTiny:
    """A VAE of its own: a diffusers folder, or a single file with or without the prefix of checkpoints."""
    if place.is_dir():
        config = place / "config.json"
        if not config.is_file():
            raise ModelError(f"{place} is no VAE: it has no config.json.", "Name a VAE's folder or file.")
        kinds = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
        name = json.loads(config.read_text(encoding="utf-8")).get("_class_name", "AutoencoderKL")
        if name not in kinds:
            raise ModelError(f"The VAE {place} is a {name}.", f"Use one of {', '.join(kinds)}.")
        return kinds[name].from_pretrained(place, local_files_only=True)
    if family == "sd3" or family == "flux":
        raise ModelError(f"The VAE {place} is no folder.", "Name a VAE's diffusers folder for SD3 and Flux.")
    if not place.is_file():
        raise ModelError(f"There is no VAE {place}.", "Name a VAE's folder or file.")
    tensors = read_tensors(place)
    at = shapes.VAE_PREFIX
    if not any(name.startswith(at) for name in tensors):
        tensors = {at + name: tensor for name, tensor in tensors.items()}
    vae = _vae(tensors, {name: tuple(t.shape) for name, t in tensors.items()}, family)
    if vae is None:
        raise ModelError(f"{place} holds no VAE.", "Name a VAE's folder or file.")
    return vae
