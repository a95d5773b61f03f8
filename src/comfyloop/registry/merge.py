"""Merges a text adapter into a base model's weights: a directory that transformers and vLLM load like any model.

The result has the base model's files with the same headers: every other tensor is copied as it is, and one layer at a
time is in memory. Sums are made in float32 and rounded once.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comfyloop.durable import appear
from comfyloop.errors import Conflict, InvalidInput
from comfyloop.models.adapter_check import Limits, check, rank_and_scale, tail
from comfyloop.models.lora_start import refuse_changed_base
from comfyloop.registry.archive import CHUNK, disk_error

Floats = NDArray[np.float32]

_LIMITS = Limits("A merged model", outside=True, dora=True, patterns=True)
_PREFIX = "base_model.model."
_WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|gguf|onnx|h5|msgpack)$")


class Layer:
    """The LoRA of one layer.

    Attributes:
        down, up: A and B.
        magnitude: DoRA's, or None.
    """

    def __init__(self, down: Floats, up: Floats, scale: float, magnitude: Floats | None) -> None:
        self.down, self.up, self.scale, self.magnitude = down, up, scale, magnitude

    @property
    def rank(self) -> int:
        return len(self.down)

    def on(self, weight: Floats) -> Floats:
        changed = weight + np.float32(self.scale) * (self.up @ self.down)
        if self.magnitude is None:
            return changed
        norms = np.linalg.norm(changed, axis=1, keepdims=True)
        return np.asarray(changed * (self.magnitude[:, None] / norms), np.float32)


class Tensor(NamedTuple):
    """One tensor of a safetensors file, which is read when it is asked for."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int
    bytes: int

    @property
    def layer(self) -> str:
        """Whose weight or bias it is, as adapters call it."""
        return tail(self.name.rpartition(".")[0])

    def read(self) -> Floats:
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            return _floats(handle.read(self.bytes), self.dtype, self.name).reshape(self.shape)


def merge(adapter: Path, model: Path, target: Path) -> None:
    """Write the new directory `target`: it is there whole, or not at all.

    Args:
        adapter: A PEFT directory.
        model: The base model's directory.

    Raises:
        InvalidInput: The adapter does not fit the model, or the model's weights cannot be added to; says why.
        Conflict: `target` is there already.
        StorageError: The disk refuses.
    """
    if target.exists():
        raise Conflict(f"{target} is there already.", "Give a new folder.")
    layers = layers_of(adapter, model)
    files = weights_of(model)

    def write(making: Path) -> None:
        for other in sorted(model.iterdir()):
            if other.is_file() and not _WEIGHTS.search(other.name):
                shutil.copyfile(other, making / other.name)
        for file in files:
            _rewrite(file, making / file.name, layers)
        if layers:
            raise InvalidInput(f"The base model has no layer {min(layers)}.")

    try:
        appear(target, write)
    except OSError as error:
        raise disk_error(target, error) from error


def weights_of(model: Path) -> list[Path]:
    """Raises InvalidInput: The base model has no safetensors."""
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise InvalidInput(
            f"{model} has no safetensors to merge into.", "Convert the base model to safetensors."
        )
    return files


def layers_of(adapter: Path, model: Path | None = None) -> dict[str, Layer]:
    """An adapter's layers, by the tail of the layer's name, which is the same in all ways of saving the model.

    Args:
        model: The base model's directory, whose layers are compared; None: it is not here.

    Raises:
        InvalidInput: It does not fit the model, or cannot be worked into weights.
    """
    check(str(adapter), str(adapter), _LIMITS, str(model or ""))
    if (positions := adapter / "positions.json").is_file() and json.loads(positions.read_text("utf-8"))[
        "rope_scaling"
    ]:
        raise InvalidInput(
            "The adapter was trained on scaled positions, which this form does not carry.",
            "Export it with --to peft, and scale positions where it is served.",
        )
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    refuse_changed_base(str(adapter), config)
    parts_of_layer: dict[str, dict[str, Floats]] = {}
    for tensor in tensors_of(adapter / "adapter_model.safetensors"):
        layer, _, part = tensor.name.removeprefix(_PREFIX).rpartition(".lora_")
        parts_of_layer.setdefault(layer, {})[part] = tensor.read()
    layers = {}
    for layer, parts in parts_of_layer.items():
        scale = rank_and_scale(config, layer)[1]
        layers[tail(layer)] = Layer(
            parts["A.weight"], parts["B.weight"], scale, parts.get("magnitude_vector.weight")
        )
    return layers


def _rewrite(source: Path, target: Path, layers: dict[str, Layer]) -> None:
    """Copy a file of weights; adapted tensors are rewritten and their layers removed from `layers`."""
    header, start = _header(source)
    with source.open("rb") as reader, target.open("wb") as writer:
        _pass_on(reader, writer, start)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            begin, end = entry["data_offsets"]
            layer = layers.pop(tail(name.removesuffix(".weight")), None) if name.endswith(".weight") else None
            if layer is None:
                _pass_on(reader, writer, end - begin)
                continue
            weight = _floats(reader.read(end - begin), entry["dtype"], name).reshape(entry["shape"])
            writer.write(_bytes(layer.on(weight), entry["dtype"]))


def _pass_on(reader: BinaryIO, writer: BinaryIO, count: int) -> None:
    while count:
        chunk = reader.read(min(CHUNK, count))
        if not chunk:
            raise InvalidInput("The base model's weights are cut off.", "Download it again.")
        writer.write(chunk)
        count -= len(chunk)


def tensors_of(file: Path) -> Iterator[Tensor]:
    """In the order in which they lie there."""
    header, start = _header(file)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        begin, end = entry["data_offsets"]
        yield Tensor(name, tuple(entry["shape"]), entry["dtype"], file, start + begin, end - begin)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header: dict[str, Any] = json.loads(handle.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _floats(data: bytes, dtype: str, name: str) -> Floats:
    match dtype:
        case "F32":
            return np.frombuffer(data, "<f4")
        case "F16":
            return np.frombuffer(data, "<f2").astype(np.float32)
        case "BF16":
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    raise InvalidInput(
        f"{name} of the base model is {dtype}: quantised weights cannot be added to.",
        "Merge into the model that it was quantised from.",
    )


def _bytes(values: Floats, dtype: str) -> bytes:
    """Rounded to the nearest, to even where two are as near."""
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
