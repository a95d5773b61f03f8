"""A diffusers folder as its JSON files describe it: what it is, and that all its parts are there. Imports no torch.

What `from_pretrained` makes up where a file is missing (weights by chance, a tokenizer of three words, the default
scheduler) is found here or when the part is read, and refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from comfyloop.errors import ModelError
from comfyloop.files import regular
from comfyloop.stable_diffusion.kinds import Objective, refuse_other_inputs, refuse_other_scheduler
from comfyloop.stable_diffusion.shapes import WIDTHS, Family, unknown_width

PIPELINES: dict[str, Literal["sd3", "flux"]] = {"StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux"}
"""Transformers that are trained, by their pipeline."""
VAES = ("AutoencoderKL", "AutoencoderTiny")
MOST_BYTES = 64 * 2**20
_AGAIN = "Download the folder again."
_ENCODERS = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
"""What other pipelines' UNets are given beside text and size; without it they say something else."""


@dataclass(frozen=True)
class Folder:
    """What a folder holds; `objective` is None for transformers, which are trained by flow matching."""

    family: Family | Literal["sd3", "flux"]
    objective: Objective | None


def read_folder(place: Path) -> Folder:
    """Raises ModelError: It is of another kind, or a part is missing or damaged; says which."""
    index = place / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{place} is no diffusers folder: it has no model_index.json.",
            "Name a .safetensors checkpoint of SD1.5, SD2 or SDXL, or a diffusers folder.",
        )
    try:
        return _folder(place, read_json(index))
    except ModelError as error:
        raise ModelError(f"{place} cannot be trained on. {error.message}", error.hint) from None


def _folder(place: Path, parts: Mapping[str, Any]) -> Folder:
    pipeline = str(parts.get("_class_name") or "pipeline without a name")
    if "transformer" in parts:
        if pipeline not in PIPELINES:
            raise ModelError(
                f"It is a {pipeline}, which is not trained here.",
                f"Name a folder of SD1.5, SD2, SDXL, {', '.join(PIPELINES)}.",
            )
        scheduler = str(read_json(place / "scheduler/scheduler_config.json").get("_class_name", ""))
        if not scheduler.startswith("FlowMatch"):
            raise ModelError(
                f"Its scheduler is a {scheduler or 'nameless one'}, not one of flow matching.", _AGAIN
            )
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            weights_of(place / name)
        return Folder(PIPELINES[pipeline], None)

    if "unet" not in parts:
        raise ModelError(
            f"It is a {pipeline}, which has no UNet and no transformer.",
            f"Name a folder of SD1.5, SD2, SDXL, {', '.join(PIPELINES)}.",
        )
    _refuse_class(parts, "unet", ("UNet2DConditionModel",))
    family = _family(read_json(place / "unet/config.json"))
    encoders = ("text_encoder", "text_encoder_2")[: 2 if family == "sdxl" else 1]
    for name in encoders:
        _refuse_class(parts, name, _ENCODERS[name])
        _refuse_other_encoder(place, name)
    scheduler_config = read_json(place / "scheduler/scheduler_config.json")
    refuse_other_scheduler(scheduler_config)
    for name in ("unet", "vae", *encoders):
        weights_of(place / name)
    return Folder(
        family,
        Objective(
            scheduler_config.get("prediction_type", "epsilon"),
            bool(scheduler_config.get("rescale_betas_zero_snr")),
        ),
    )


def _family(config: Mapping[str, Any]) -> Family:
    name = config.get("_class_name", "UNet2DConditionModel")
    if name != "UNet2DConditionModel":
        raise ModelError(f"Its UNet is a {name}.", "Name a text-to-image model of SD1.5, SD2 or SDXL.")
    width = config.get("cross_attention_dim")
    if not isinstance(width, int) or width not in WIDTHS:
        raise unknown_width(width)
    refuse_other_inputs(config.get("in_channels", 4), config.get("out_channels", 4))
    family = WIDTHS[width]
    given = [key for key in _CONDITIONS if config.get(key) is not None]
    if config.get("addition_embed_type") != ("text_time" if family == "sdxl" else None):
        given.append("addition_embed_type")
    if given:
        raise ModelError(
            f"Its UNet is told more than a text: {', '.join(f'{key} = {config.get(key)}' for key in given)}.",
            "Name a text-to-image model of SD1.5, SD2 or SDXL.",
        )
    return family


def _refuse_class(parts: Mapping[str, Any], name: str, wanted: tuple[str, ...]) -> None:
    said = parts.get(name)
    found = said[1] if isinstance(said, list) and len(said) == 2 else wanted[0]
    if found not in wanted:
        raise ModelError(
            f"Its {name} is {f'a {found}' if found else 'left out'}, where a {wanted[0]} is needed.",
            "Name a text-to-image model of SD1.5, SD2 or SDXL.",
        )


def _refuse_other_encoder(place: Path, name: str) -> None:
    config = read_json(place / name / "config.json")
    kind = config.get("model_type", "clip_text_model")
    if kind not in ("clip_text_model", "clip"):
        raise ModelError(
            f"Its {name} is of type {kind}, where CLIP's text model is needed.",
            "Name a text-to-image model of SD1.5, SD2 or SDXL.",
        )
    tokenizer = place / name.replace("text_encoder", "tokenizer")
    if not (tokenizer / "tokenizer.json").is_file():
        for file in ("vocab.json", "merges.txt"):
            if not (tokenizer / file).is_file():
                raise ModelError(f"Its {tokenizer.name} has no {file}.", _AGAIN)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError: It is not there, or holds none."""
    what = f"{path.parent.name}/{path.name}"
    try:
        value = json.loads(regular(path, MOST_BYTES).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ModelError(f"It has no {what}.", _AGAIN) from None
    except (OSError, ValueError, RecursionError) as error:
        why = "its brackets are nested too deep" if isinstance(error, RecursionError) else error
        raise ModelError(f"Its {what} cannot be read ({why}).", _AGAIN) from None
    if not isinstance(value, dict):
        raise ModelError(f"Its {what} is no JSON object.", _AGAIN)
    return value


_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors"
    r"(?:\.index(?:\.(?P<indexed>\w+))?\.json)?"
)


def weights_of(part: Path) -> str | None:
    """The variant under which a part's weights are saved ("fp16"); None: under their plain name.

    Raises:
        ModelError: There are none, or only pickles.
    """
    names = sorted(path.name for path in part.iterdir()) if part.is_dir() else []
    found = [match for name in names if (match := _WEIGHTS.fullmatch(name))]
    variants = [match["variant"] or match["indexed"] for match in found]
    if None in variants:
        return None
    if variants:
        return sorted(variants, key=lambda name: (name == "non_ema", name != "fp16", name))[0]
    if any(name.endswith((".bin", ".ckpt", ".pt")) for name in names):
        raise ModelError(
            f"Its {part.name} has its weights as a pickle alone, which runs code when it is read and is never loaded.",
            "Save the folder as safetensors: save_pretrained(..., safe_serialization=True) of diffusers does that.",
        )
    raise ModelError(f"Its {part.name} has no weights (no .safetensors file).", _AGAIN)
