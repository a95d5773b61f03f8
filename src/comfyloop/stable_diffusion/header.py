"""What a safetensors file says of itself, without its weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from comfyloop.errors import ModelError

PICKLES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})


@dataclass(frozen=True)
class Header:
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_header(place: Path) -> Header:
    """Raises ModelError: It is a pickle, or no whole safetensors file."""
    refuse_pickle(place)
    try:
        with safe_open(place, "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return Header(shapes, file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(place, error) from None


CONVERT = "Convert it to safetensors; ComfyUI's CheckpointSave node does that."
CONVERT_VAE = "Convert it to safetensors; ComfyUI's VAESave node does that."


def refuse_pickle(place: Path, hint: str = CONVERT) -> None:
    """Raise ModelError for a file that runs code when it is read."""
    if place.suffix.lower() in PICKLES:
        raise ModelError(
            f"{place.name} is a pickle, which runs code when it is read, and is never loaded.",
            hint,
        )


def damaged(place: Path, error: Exception) -> ModelError:
    return ModelError(f"{place} is not a whole safetensors file ({error}).", "Download or copy it again.")
