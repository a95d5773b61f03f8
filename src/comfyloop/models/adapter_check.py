"""Checks whether an adapter fits a base model and an engine would apply all of it, from its files, without torch.

Other engines silently ignore what they do not know: a tensor of the vision tower, a layer of another name. Adapters
that would be applied only in part are refused before loading.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comfyloop.errors import InvalidInput, NotFound
from comfyloop.models.lora_start import refuse_changed_base
from comfyloop.models.rope import RopeScaling, refuse_other_positions

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"^(?P<layer>.+)\.lora_(?P<part>A|B)\.weight$")
_MAGNITUDE = ".lora_magnitude_vector.weight"
_OUTSIDE = re.compile(
    r"(^|\.)(vision_tower|vision_model|image_tower|visual|audio_tower|multi_modal_projector|mm_projector|"
    r"projector|merger|connector)(\.|$)"
)
_EXPONENT = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""Numbers whose exponent is all ones are not finite."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """What an engine applies.

    Attributes:
        rank: Highest rank; 0: any.
        layers: Last parts of the names of layers that it adapts; empty: any.
        outside: Whether layers outside the language model (vision tower, projector) are adapted too.
        dora: Whether DoRA's magnitudes are applied.
        patterns: Whether each layer may have a rank and a scale of its own.
        hint: What to do about layers outside the language model.
    """

    engine: str
    rank: int = 0
    layers: frozenset[str] = frozenset()
    outside: bool = False
    dora: bool = False
    patterns: bool = False
    hint: str = ""


def rank_and_scale(config: Mapping[str, Any], layer: str) -> tuple[int, float]:
    """The rank and scale that PEFT uses for a layer: its own where a pattern matches the end of its name, else the
    adapter's."""

    def of(patterns: str, default: str) -> Any:
        own = (config.get(patterns) or {}).items()
        return next(
            (value for key, value in own if re.match(rf"(.*\.)?({key})$", layer)), config.get(default, 8)
        )

    rank = int(of("rank_pattern", "r"))
    return rank, float(of("alpha_pattern", "lora_alpha")) / (
        math.sqrt(rank) if config.get("use_rslora") else rank
    )


def check(
    name: str, path: str, limits: Limits, model: str = "", *, positions: RopeScaling | None = None
) -> None:
    """Raise an error if the PEFT directory `path` would not be applied completely.

    Args:
        model: Directory of the base model, whose layers are compared; elsewhere (a hub id) they are not.
        positions: How the engine scales them; engines other than our own run with the base model's own.

    Raises:
        NotFound: The directory or one of its files does not exist.
        InvalidInput: A tensor would be skipped, is missing, does not fit or is not finite; or it was trained
            on other positions than the base model's own.
    """
    folder = Path(path)
    config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise NotFound(f"Adapter {name}: {file} does not exist.", "Give a directory that PEFT has saved.")
    try:
        config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
        shapes = header(weights)
    except ValueError as error:
        raise InvalidInput(f"Adapter {name} cannot be read: {error}") from error
    _check_config(name, config, limits)
    refuse_other_positions(name, folder, running=positions)
    layers = _layers(name, shapes, dora=limits.dora)
    base_layers = _base_layers(Path(model)) if model else {}
    before = _before_layers(Path(model)) if model else set()
    for layer, (a, b) in layers.items():
        _check_layer(name, layer, limits)
        _check_name(name, layer, before, limits)
        if a[0] != b[1]:
            raise InvalidInput(
                f"Adapter {name}: the two tensors of {layer} have ranks {a[0]} and {b[1]}; they must agree."
            )
        _check_scale(name, layer, a[0], config, limits)
        if limits.rank and a[0] > limits.rank:
            raise InvalidInput(
                f"Adapter {name} has rank {a[0]} at {layer}; {limits.engine} was started for at most "
                f"{limits.rank}.",
                "Raise the setting max_lora_rank, or train with a lower lora_r.",
            )
        if base_layers and (base_shape := base_layers.get(tail(layer))) is None:
            raise InvalidInput(f"Adapter {name} is for a layer {layer} that the base model does not have.")
        elif base_layers and base_shape != (b[0], a[1]):
            raise InvalidInput(
                f"Adapter {name} does not fit the base model: {layer} is {base_shape} there, and the adapter is "
                f"for {(b[0], a[1])}."
            )
    if odd := not_finite(weights):
        raise InvalidInput(f"Adapter {name}: {odd} contains numbers that are not finite.")


def _check_scale(name: str, layer: str, rank: int, config: Mapping[str, Any], limits: Limits) -> None:
    own, scale = rank_and_scale(config, layer)
    if rank != own:
        raise InvalidInput(
            f"Adapter {name} has rank {rank} at {layer}, and its adapter_config.json says {own}, so it is not known "
            "how much of it to add.",
            "Write the ranks that it was trained with into r and rank_pattern.",
        )
    every = rank_and_scale({**config, "rank_pattern": None, "alpha_pattern": None}, layer)[1]
    if not limits.patterns and not math.isclose(scale, every):
        raise InvalidInput(
            f"Adapter {name} is added {scale:g} times at {layer} and {every:g} times elsewhere (rank_pattern, "
            f"alpha_pattern); {limits.engine} would add all of it {every:g} times.",
            "Serve it with the embedded engine, or merge it into the base model.",
        )


def refuse_no_effect(name: str, config: Mapping[str, Any]) -> None:
    """Raise InvalidInput if the scale alpha / r is 0 or not finite, as some conversion tools produce: the adapter
    would be loaded without any effect."""
    for field, pattern, least in (("r", "rank_pattern", 1), ("lora_alpha", "alpha_pattern", -math.inf)):
        said = {field: config.get(field, 8)}  # PEFT's own, where it is left out
        said |= {f"{pattern} of {layer}": value for layer, value in (config.get(pattern) or {}).items()}
        for what, value in said.items():
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if not is_number or value == 0 or value < least:
                raise InvalidInput(
                    f"Adapter {name}: its {what} is {value}, so it would change nothing.",
                    "Write the value that it was trained with into its adapter_config.json.",
                )


def _check_config(name: str, config: Mapping[str, Any], limits: Limits) -> None:
    if config.get("peft_type") != "LORA":
        raise InvalidInput(
            f"Adapter {name} is a {config.get('peft_type')} adapter; {limits.engine} applies LoRA."
        )
    refuse_changed_base(f"Adapter {name}", config)
    refuse_no_effect(name, config)
    if config.get("bias", "none") != "none":
        raise InvalidInput(f"Adapter {name} has trained biases, which {limits.engine} does not apply.")
    unused = ("lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication")
    for field in (*unused, "target_parameters", "fan_in_fan_out", *(() if limits.dora else ("use_dora",))):
        if config.get(field):
            raise InvalidInput(f"Adapter {name} uses {field}, which {limits.engine} does not apply.")


def _layers(name: str, shapes: Mapping[str, Shape], *, dora: bool = False) -> dict[str, tuple[Shape, Shape]]:
    """The shapes of both tensors, A (r, in) and B (out, r), by the layer's name in the model."""
    parts: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        if dora and key.endswith(_MAGNITUDE) and len(shape) == 1:
            continue
        match = _TENSOR.match(key.removeprefix(_PREFIX))
        if match is None or len(shape) != 2:
            raise InvalidInput(
                f"Adapter {name} has a tensor {key} that is not a LoRA tensor of a linear layer."
            )
        parts.setdefault(match["layer"], {})[match["part"]] = shape
    for layer, tensors in parts.items():
        if len(tensors) != 2:
            raise InvalidInput(f"Adapter {name} has only one of the two tensors of {layer}.")
    if not parts:
        raise InvalidInput(f"Adapter {name} has no tensors.")
    return {layer: (tensors["A"], tensors["B"]) for layer, tensors in parts.items()}


def _check_layer(name: str, layer: str, limits: Limits) -> None:
    if _OUTSIDE.search(layer):
        if not limits.outside:
            raise InvalidInput(
                f"Adapter {name} adapts {layer}, outside the language model, which {limits.engine} would "
                "leave out in silence.",
                limits.hint,
            )
        return
    if limits.layers and layer.rpartition(".")[2] not in limits.layers:
        raise InvalidInput(
            f"Adapter {name} adapts {layer}, a kind of layer that {limits.engine} does not adapt.",
            f"It adapts: {', '.join(sorted(limits.layers))}.",
        )


def _check_name(name: str, layer: str, before: set[str], limits: Limits) -> None:
    """Refuse a layer name that an engine would silently ignore. Vision-language models have several naming schemes,
    all of which their engines know."""
    start = layer.find("layers.")
    if limits.layers and len(before) == 1 and start >= 0 and layer[:start] not in before:
        (own,) = before
        raise InvalidInput(
            f"Adapter {name} calls a layer {layer}, and the base model calls it {own}{layer[start:]}: "
            f"{limits.engine} would leave it out in silence.",
            "Rename its tensors as the base model's are.",
        )


def _before_layers(model: Path) -> set[str]:
    """What precedes `layers.` in the names of a model's tensors, where its files are here."""
    names = (key for file in sorted(model.glob("*.safetensors")) for key in header(file))
    return {key[: key.find("layers.")] for key in names if "layers." in key}


def tail(layer: str) -> str:
    """A layer's name as every way of saving the model spells it: without what precedes `layers.`, or the part that
    sees pictures, and with whether it is within the language model."""
    outside = _OUTSIDE.search(layer)
    side = "outside:" if outside else ""
    start = layer.find("layers.")
    if start < 0:
        start = outside.start(2) if outside else layer.rfind(".") + 1
    return side + layer[start:]


def _base_layers(model: Path) -> dict[str, Shape]:
    """Shapes of the base model's matrices by `tail` of their layers; empty where its files are not here."""
    shape_of: dict[str, Shape] = {}
    for file in sorted(model.glob("*.safetensors")):
        for key, shape in header(file).items():
            if key.endswith(".weight") and len(shape) == 2:
                shape_of[tail(key.removesuffix(".weight"))] = shape
    return shape_of


def header(file: Path) -> dict[str, Shape]:
    """Names and shapes of the tensors in a safetensors file. Raises ValueError when it is not one."""
    return {name: tuple(entry["shape"]) for name, entry in _entries(file)[0].items()}


def _entries(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where the data begins."""
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        if not 2 <= size <= file.stat().st_size - 8:
            raise ValueError(f"{file} is not a whole safetensors file")
        entries = json.loads(handle.read(size))
    entries.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in entries.values()]
    if max(ends, default=0) != file.stat().st_size - 8 - size:
        raise ValueError(f"{file} is cut off or has something behind it")
    return entries, 8 + size


def not_finite(file: Path) -> str:
    """The first tensor with an infinity or a not-a-number; empty when there is none."""
    return next(_with_odd_numbers(file), "")


def _with_odd_numbers(file: Path) -> Iterator[str]:
    entries, start = _entries(file)
    block = bytearray(_BLOCK)
    with file.open("rb", buffering=0) as handle:
        for name, entry in entries.items():
            if entry["dtype"] not in _EXPONENT:
                continue
            kind, exponent = _EXPONENT[entry["dtype"]]
            begin, remaining = entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0]
            handle.seek(start + begin)
            while remaining and (count := handle.readinto(memoryview(block)[: min(_BLOCK, remaining)])):
                remaining -= count
                bits = np.frombuffer(block, kind, count // np.dtype(kind).itemsize)
                if int((bits & exponent).max(initial=0)) == exponent:
                    yield name
                    break


_BLOCK = 2**19
"""Bytes looked at together: they stay in the processor's cache."""
