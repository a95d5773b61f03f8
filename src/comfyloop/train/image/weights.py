"""Reads weights completely: every tensor of a part, none of them randomly initialised.

`from_pretrained` initialises missing tensors randomly and only warns; a LoRA trained on those is useless in
ComfyUI.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from comfyloop.errors import ModelError
from comfyloop.stable_diffusion.folder import weights_of
from comfyloop.stable_diffusion.header import CONVERT, damaged, refuse_pickle

SCALES = (".scale_weight", ".weight_scale")
"""ComfyUI's two names for what weights of 8 bits are to be multiplied by."""
_OF_ACTIVATIONS = (
    ".scale_input",
    ".input_scale",
)  # they round what goes in; the weights mean the same without
_EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2")
_OTHER_KIND = "It may be damaged or of another kind."


def read_tensors(place: Path, hint: str = CONVERT) -> dict[str, Tensor]:
    """All tensors of a safetensors file, with scaled 8-bit tensors dequantised.

    Args:
        hint: What to do where it is a pickle.

    Raises:
        ModelError: It is not a safetensors file, is cut off, or is quantised in a way that is not read.
    """
    refuse_pickle(place, hint)
    try:
        with safe_open(place, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(place, error) from None
    try:
        return _dequantised(tensors)
    except ModelError as error:
        raise ModelError(f"{place.name} cannot be used. {error.message}", error.hint) from None


def _dequantised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without ComfyUI's scales, which their weights are multiplied by."""
    weights: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, dot, last = name.rpartition(".")
        if last == "comfy_quant":
            _check_format(stem, tensor)
        elif f"{dot}{last}" in SCALES and f"{stem}.weight" in tensors:
            scales[f"{stem}.weight"] = tensor
        elif last != "scaled_fp8" and f"{dot}{last}" not in _OF_ACTIVATIONS:
            weights[name] = tensor
    for name, tensor in weights.items():
        if name.endswith(".weight") and not tensor.is_floating_point():
            raise _quantised(f"{name} is of {str(tensor.dtype).removeprefix('torch.')}")
    for name, scale in scales.items():
        weight = weights[name].float()
        if scale.numel() not in (1, len(weight)):
            raise _quantised(f"{name} has {scale.numel()} scales")
        weights[name] = weight * scale.float().reshape(-1, *(1 for _ in weight.shape[1:]))
    return weights


def _check_format(stem: str, tensor: Tensor) -> None:
    try:
        format = json.loads(bytes(tensor.flatten().tolist()))["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        format = "unknown"
    if format not in _EIGHT_BITS:
        raise _quantised(f"{stem} is of the format {str(format)[:40]}")


def _quantised(what: str) -> ModelError:
    return ModelError(
        f"It is quantised in a way that is not read here: {what}.",
        "Name the model in 16 bits, or in fp8 with one scale a layer.",
    )


@contextlib.contextmanager
def building(place: Path) -> Iterator[None]:
    """Convert errors while building a model from a file's tensors into a message about the file."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{place.name} cannot be used. {error.message}", error.hint) from None
    except KeyError as error:
        raise ModelError(f"{place.name} lacks the tensor {error.args[0]}.", "Download it again.") from None
    except MemoryError:
        raise
    except Exception as error:  # its shapes are read as those of a model, whatever they are
        raise ModelError(
            f"{place.name} has tensors of shapes that no model has ({first_line(error)}).",
            "It may be damaged or of another kind.",
        ) from None


def read_part(kind: Any, place: Path, dtype: torch.dtype | None = None) -> Any:
    """One part of a diffusers folder (`place` is the part's own folder), by its class in diffusers or transformers.

    Raises:
        ModelError: It lacks tensors, has others, or cannot be read.
    """
    variant = weights_of(place)
    more = {} if dtype is None else {"dtype": dtype}
    try:
        module, loading_info = kind.from_pretrained(
            place,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            output_loading_info=True,
            **more,
        )
    except MemoryError:
        raise
    except Exception as error:  # readers raise whatever the damage leads them to
        raise ModelError(
            f"Its {place.name} cannot be read: {first_line(error)}.", "Download the folder again."
        ) from None
    complain(
        place.name,
        loading_info["missing_keys"],
        loading_info["unexpected_keys"],
        loading_info.get("mismatched_keys", ()),
    )
    refuse_no_numbers(place.name, module.named_parameters())
    return module


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def fill(module: nn.Module, state: Mapping[str, Tensor], part: str) -> None:
    """Load exactly the tensors of the module. Raises ModelError naming missing or unexpected ones."""
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    shape_of = {name: tuple(tensor.shape) for name, tensor in state.items()}
    unlike = [name for name in own.keys() & shape_of.keys() if own[name] != shape_of[name]]
    complain(part, own.keys() - shape_of.keys(), shape_of.keys() - own.keys(), unlike)
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    refuse_no_numbers(part, module.named_parameters())


def refuse_no_numbers(part: str, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ModelError when a part has NaN or infinite weights, as merges leave them: every loss would be one."""
    for name, tensor in named_tensors:
        if not torch.isfinite(tensor.detach().float().sum()):
            raise ModelError(
                f"Its {part} has weights that are no numbers (NaN or infinite), as in {name}.",
                "The model is damaged: merge or download it again.",
            )


def complain(part: str, missing: Iterable[str], unknown: Iterable[str], unlike: Iterable[Any]) -> None:
    """Raise ModelError when a part lacks a tensor, has one that it does not know, or one of another shape."""
    shaped = [entry if isinstance(entry, str) else entry[0] for entry in unlike]
    missing = [name for name in missing if not name.endswith("position_ids")]
    unknown = [name for name in unknown if not name.endswith("position_ids")]
    for what, tensor_names in (
        ("lacks", missing),
        ("has the unknown", unknown),
        ("has another shape of", shaped),
    ):
        if tensor_names:
            names = sorted(tensor_names)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(f"Its {part} {what} {', '.join(names[:3])}{more}.", _OTHER_KIND)
