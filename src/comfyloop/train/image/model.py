"""An image model: its parts, and readers for the parts of a folder that are not weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn
from transformers import CLIPTokenizer

from comfyloop.errors import ModelError
from comfyloop.stable_diffusion.folder import read_json
from comfyloop.stable_diffusion.shapes import Family
from comfyloop.train.image.weights import first_line

ImageFamily = Family | Literal["sd3", "flux"]


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


def read_tokenizer(kind: Any, place: Path, model: Any) -> Any:
    """The tokenizer of a text encoder. Raises ModelError: It cannot be read, or has other words than the encoder."""
    try:
        tokenizer = kind.from_pretrained(place, local_files_only=True)
        words, vocabulary = len(tokenizer), model.config.vocab_size
    except Exception as error:  # as for weights
        raise ModelError(
            f"Its {place.name} cannot be read: {first_line(error)}.", "Download the folder again."
        ) from None
    if (
        not vocabulary // 2 < words <= vocabulary
    ):  # transformers makes one of three words where the files are missing
        raise ModelError(
            f"Its {place.name} has {words} words, and its text encoder knows {vocabulary}.",
            "Download the folder again.",
        )
    return tokenizer


def read_scheduler(kind: Any, place: Path) -> Any:
    """The folder's scheduler. Raises ModelError: Its configuration makes none."""
    try:
        return kind.from_config(read_json(place / "scheduler/scheduler_config.json"))
    except ModelError:
        raise
    except Exception as error:  # as for weights
        raise ModelError(
            f"Its scheduler cannot be made: {first_line(error)}.", "Mend its scheduler_config.json."
        ) from None
