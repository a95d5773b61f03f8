"""What an image model predicts and what it takes in, as far as a trainer must know: what it cannot teach is refused
by name, never trained as something else. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from comfyloop.errors import ModelError

Prediction = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS = ("epsilon", "v_prediction", "sample")

_SAID = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
"""What the metadata of a single file call it."""
_SCHEDULERS = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
        *(
            "DPMSolverMultistep",
            "DPMSolverSinglestep",
            "DPMSolverSDE",
            "KDPM2Discrete",
            "KDPM2AncestralDiscrete",
        ),
        *("DEISMultistep", "UniPCMultistep"),
    )
)
"""Samplers of a discrete schedule of betas, which say the same of how the model was trained."""
_OTHER_INPUTS = {
    5: "a depth model, whose UNet also takes a depth map",
    7: "an upscaler, whose UNet also takes a small picture",
    8: "an editing model (InstructPix2Pix), whose UNet also takes the picture to be edited",
    9: "an inpainting model, whose UNet also takes a mask and what is around it",
}
_PLAIN = "Name a text-to-image model of SD1.5, SD2 or SDXL."


@dataclass(frozen=True)
class Objective:
    """What the UNet predicts of a noisy picture: the noise, the velocity or the picture itself.

    Attributes:
        zero_terminal_snr: whether the last timestep is noise alone (Lin et al. 2024).
    """

    prediction: Prediction = "epsilon"
    zero_terminal_snr: bool = False


def objective_of_file(
    names: Container[str], metadata: Mapping[str, str], given: Prediction | None = None
) -> Objective | None:
    """What a single file says, by ComfyUI's markers before its metadata; None when it does not.

    Args:
        names: Of its tensors.
        given: What the person says, which goes before both.

    Raises:
        ModelError: It is trained in a way that is not taught here.
    """
    if "edm_mean" in names or "edm_std" in names:
        raise _edm("It is an EDM model (Playground 2.5: it has edm_mean)")
    if "edm_vpred.sigma_max" in names:
        raise _edm("It is an EDM model (CosXL: it has edm_vpred.sigma_max)")
    said = metadata.get("modelspec.prediction_type") or metadata.get("modelspec.predict_key") or ""
    prediction = given
    if prediction is None and "v_pred" in names:
        prediction = "v_prediction"
    if prediction is None and said:
        if said.lower() not in _SAID:
            raise ModelError(
                f"Its metadata say that it predicts {said[:40]!r}, which is not trained here.",
                f"Set prediction_type if that is one of {', '.join(PREDICTIONS)}.",
            )
        prediction = "v_prediction" if _SAID[said.lower()] == "v_prediction" else "epsilon"
    if prediction is None:
        return None
    return Objective(prediction, prediction != "epsilon" and "ztsnr" in names)


def refuse_other_scheduler(config: Mapping[str, Any]) -> None:
    """Raise ModelError when a UNet's scheduler_config.json is not of noise, velocity or picture on discrete steps."""
    name = str(config.get("_class_name", ""))
    prediction = config.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas") or "flow" in str(prediction):
        raise ModelError(
            f"It is a UNet trained by flow matching (its scheduler is a {name}), which is not trained here.",
            _PLAIN,
        )
    if name.startswith("EDM") or config.get("timestep_type") == "continuous":
        raise _edm(f"It is an EDM model (its scheduler is a {name})")
    if name in ("LCMScheduler", "TCDScheduler"):
        raise ModelError(
            f"It is distilled to few steps (its scheduler is a {name}), which training would undo.",
            "Name the model it was distilled from.",
        )
    if name not in _SCHEDULERS:
        raise ModelError(f"Its scheduler is a {name or 'nameless one'}, which is not known here.", _PLAIN)
    if prediction not in PREDICTIONS:
        raise ModelError(
            f"Its scheduler says that it predicts {prediction!r}, which is not trained here.", _PLAIN
        )


def refuse_other_inputs(in_channels: int, out_channels: int, latent_channels: int = 4) -> None:
    """Raise ModelError when a UNet takes or gives more than latents of so many channels."""
    if in_channels == out_channels == latent_channels:
        return
    if in_channels in _OTHER_INPUTS and out_channels == latent_channels == 4:
        raise ModelError(
            f"It is {_OTHER_INPUTS[in_channels]} ({in_channels} channels, not 4).",
            "Name the text-to-image model that it was made from.",
        )
    raise ModelError(
        f"Its UNet takes {in_channels} channels and gives {out_channels}, and its VAE's latents have "
        f"{latent_channels}.",
        "Name a model and a VAE that belong together.",
    )


def _edm(what: str) -> ModelError:
    return ModelError(f"{what}, whose noise has no discrete steps; that is not trained here.", _PLAIN)
