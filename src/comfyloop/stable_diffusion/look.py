"""A look at an image model without its weights: what it is in words, or why it cannot be trained on. Imports no torch.

Whoever names a model (a setting, a project, a person at the doctor's) hears at once what a run would say later.
"""

from __future__ import annotations

from pathlib import Path

from comfyloop.errors import ModelError
from comfyloop.files import there
from comfyloop.settings import IMAGE_STARTER
from comfyloop.stable_diffusion import shapes
from comfyloop.stable_diffusion.folder import read_folder
from comfyloop.stable_diffusion.header import CONVERT_VAE, read_header, refuse_pickle
from comfyloop.stable_diffusion.kinds import Objective, Prediction, objective_of_file

NAMES = {
    "sd15": "Stable Diffusion 1.5",
    "sd2": "Stable Diffusion 2",
    "sdxl": "SDXL",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
}
_PREDICTED = {"epsilon": "the noise", "v_prediction": "the velocity", "sample": "the picture"}


def look(model: str, vae: str = "", prediction: Prediction | None = None) -> str:
    """What a model is, as a sentence.

    Args:
        model: `starter-image`, a .safetensors checkpoint or a diffusers folder.
        vae: Another VAE that is set beside it.
        prediction: What is set in place of what the model says of itself.

    Raises:
        ModelError: It does not exist, or cannot be trained on; says why.
    """
    if model == IMAGE_STARTER:
        return "The embedded image starter."
    if vae:
        beside = there(vae)
        if beside is None:
            raise ModelError(f"There is no VAE {vae[:200]!r}.", "Set image_vae to a VAE's folder or file.")
        refuse_pickle(beside, CONVERT_VAE)
    place = there(model)
    if place is not None and place.is_dir():
        folder = read_folder(place)
        return f"{NAMES[folder.family]} in a diffusers folder, {_predicts(folder.objective, prediction)}."
    if place is None or not place.is_file():
        raise ModelError(
            f"There is no image model {model[:200]!r}.",
            "Name a .safetensors checkpoint of SD1.5, SD2 or SDXL, or a diffusers folder, on the service's machine.",
        )
    return _file(place, bool(vae), prediction)


def _file(place: Path, has_vae: bool, prediction: Prediction | None) -> str:
    header = read_header(place)
    try:
        family = shapes.family(header.shapes)
        objective = objective_of_file(header.shapes, header.metadata, prediction)
        encoders = [shapes.clip(header.shapes), shapes.open_clip(header.shapes)]
    except ModelError as error:
        raise ModelError(f"{place.name} cannot be trained on. {error.message}", error.hint) from None
    except (KeyError, IndexError, ValueError):
        raise ModelError(
            f"{place.name} has tensors of shapes that no model has.", "Download or copy it again."
        ) from None
    if (family == "sdxl" and None in encoders) or not any(encoders):
        raise ModelError(
            f"{place.name} lacks text encoders.", "Name a whole checkpoint, or a diffusers folder."
        )
    if not has_vae and not shapes.has_vae(header.shapes):
        raise ModelError(
            f"{place.name} has no VAE with an encoder in it.", "Set image_vae to a VAE's folder or file."
        )
    return f"{NAMES[family]} in one file, {_predicts(objective, prediction)}."


def _predicts(objective: Objective | None, given: Prediction | None) -> str:
    if objective is None:
        return "which predicts what its weights tell"
    last = ", its last timestep noise alone" * objective.zero_terminal_snr
    return f"which predicts {_PREDICTED[given or objective.prediction]}{last}"
