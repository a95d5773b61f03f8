"""Saves the trained weights as a standard PEFT directory or a standard model directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from comfyloop.durable import appear
from comfyloop.models.rope import RopeScaling, write_positions
from comfyloop.train.run.directory import disk_error


def save_adapter(
    peft: PeftModel,
    place: Path,
    rope_scaling: RopeScaling | None,
    tensors: dict[str, Tensor] | None = None,
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; the directory appears whole or not at all.

    Also writes what an engine must know about the positions that it was trained on.

    Args:
        tensors: Parameters by name, where `peft` itself has only a part of each.

    Raises:
        StorageError: The disk refuses.
    """

    def write(making: Path) -> None:
        peft.save_pretrained(str(making), state_dict=tensors, save_embedding_layers=False)
        (making / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        write_positions(making, rope_scaling)

    _appear(place, write)


def save_model(whole: Any, processor: Any, place: Path, tensors: dict[str, Tensor] | None = None) -> None:
    """Write a model directory that transformers loads, processor and all; it appears whole or not at all.

    Args:
        tensors: Parameters by name, where `whole` itself has only a part of each.

    Raises:
        StorageError: The disk refuses.
    """

    def write(making: Path) -> None:
        whole.save_pretrained(str(making), state_dict=tensors)
        processor.save_pretrained(str(making))

    _appear(place, write)


def _appear(place: Path, write: Callable[[Path], None]) -> None:
    try:
        appear(place, write)
    except OSError as error:
        raise disk_error(place, error) from error
