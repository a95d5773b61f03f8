"""Writes a text side for llama.cpp and Ollama: the merged model and the adapter as GGUF files, with a Modelfile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFType,
    GGUFWriter,
    Keys,
    LlamaFileType,
    quants,
)

from comfyloop.durable import appear
from comfyloop.errors import Conflict, InvalidInput
from comfyloop.models.adapter_check import header
from comfyloop.registry import gguf_vocabulary, merge, modelfile
from comfyloop.registry.archive import disk_error
from comfyloop.registry.gguf_family import ROPE_FACTORS, Family, Floats
from comfyloop.registry.merge import Layer

_FILE_TYPES = {
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "f32": LlamaFileType.ALL_F32,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
"""By the numbers that a model's matrices are written in, as llama.cpp calls them."""


class GgufMetadata(NamedTuple):
    """What the files say of themselves."""

    name: str  # acme-17
    base: str = ""
    licence: str = ""


class _Tensor(NamedTuple):
    """One tensor that is to be written; it is read and computed when its turn comes."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    values: Callable[[], Floats]


def write(adapter: Path, model: Path, target: Path, about: GgufMetadata, outtype: str = "f16") -> list[str]:
    """Write the new directory `target`: it is there whole, or not at all.

    Args:
        adapter: A PEFT directory.
        model: The base model's directory.
        outtype: f16, bf16, f32 or q8_0.

    Returns:
        What is left out or differs in llama.cpp, in sentences.

    Raises:
        InvalidInput: The adapter does not fit the model, or llama.cpp cannot have it; says why.
        Conflict: `target` is there already.
        StorageError: The disk refuses.
    """
    if target.exists():
        raise Conflict(f"{target} is there already.", "Give a new folder.")
    layers = merge.layers_of(adapter, model)
    files = merge.weights_of(model)
    family = Family(model, {name: shape for file in files for name, shape in header(file).items()})
    outside = [layer for layer in layers if layer.startswith("outside:")]
    if len(outside) == len(layers):
        raise InvalidInput("The adapter changes only what sees pictures, which is not written as GGUF.")
    notes = list(family.notes)
    if outside:
        notes.append(f"So are the {len(outside)} layers of the adapter that lie there.")
    layers = {layer: change for layer, change in layers.items() if layer not in outside}
    dora = any(layer.magnitude is not None for layer in layers.values())
    if dora:
        notes.append("llama.cpp applies no DoRA: the adapter is in the merged model only.")

    def fill(making: Path) -> None:
        merged = f"{about.name}-{outtype}.gguf"
        _write_model(making / merged, files, model, family, layers, about, outtype)
        lora = "" if dora else f"{about.name}-lora.gguf"
        if lora:
            _write_adapter(making / lora, family, layers, about)
        (making / "Modelfile").write_text(modelfile.text(model, merged, lora), "utf-8")

    try:
        appear(target, fill)
    except OSError as error:
        raise disk_error(target, error) from error
    return notes


def _write_model(
    file: Path,
    files: list[Path],
    model: Path,
    family: Family,
    layers: dict[str, Layer],
    about: GgufMetadata,
    outtype: str,
) -> None:
    writer = GGUFWriter(file, family.name)
    _introduce(writer, GGUFType.MODEL, about)
    writer.add_file_type(_FILE_TYPES[outtype])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    family.describe(writer)
    gguf_vocabulary.add(model, family.vocabulary, writer)
    changed = dict(layers)
    tensors = list(_model_tensors(files, family, changed, GGMLQuantizationType[outtype.upper()]))
    if changed:
        raise InvalidInput(f"The base model has no layer {min(changed)}.")
    if (factors := family.rope_factors()) is not None:
        tensors.append(_exact(ROPE_FACTORS, factors))
    _write_tensors(writer, tensors)


def _model_tensors(
    files: list[Path], family: Family, changed: dict[str, Layer], kind: GGMLQuantizationType
) -> Iterator[_Tensor]:
    """Those of the language model, each with its change, which is taken out of `changed`."""
    for file in files:
        for tensor in merge.tensors_of(file):
            name = family.called(tensor.name)
            if not name:
                continue
            change = changed.pop(tensor.layer, None) if tensor.name.endswith(".weight") else None

            def values(tensor: merge.Tensor = tensor, change: Layer | None = change) -> Floats:
                weights = tensor.read() if change is None else change.on(tensor.read())
                return family.laid_out(tensor.name, weights)

            yield _Tensor(name, tensor.shape, _kind_of(tensor.shape, kind), values)


def _exact(name: str, values: Floats) -> _Tensor:
    return _Tensor(name, values.shape, GGMLQuantizationType.F32, lambda: values)


def _kind_of(shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    """Vectors stay as they are, and rows that cannot be cut into blocks of a quantised kind get 16 bits."""
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if wanted is GGMLQuantizationType.Q8_0 and shape[-1] % 32:
        return GGMLQuantizationType.F16
    return wanted


def _write_adapter(file: Path, family: Family, layers: dict[str, Layer], about: GgufMetadata) -> None:
    """llama.cpp knows one alpha for all layers; where theirs differ, it is worked into B."""
    writer = GGUFWriter(file, family.name)
    _introduce(writer, GGUFType.ADAPTER, about)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    first = next(iter(layers.values()))
    alpha = first.scale * first.rank
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    tensors = []
    for layer, change in layers.items():
        weight = f"{layer}.weight"
        name = family.called(weight)
        up = family.laid_out(weight, change.up * np.float32(change.scale * change.rank / alpha))
        for part, values in (("lora_a", change.down), ("lora_b", up)):
            tensors.append(_exact(f"{name}.{part}", values))
    _write_tensors(writer, tensors)


def _introduce(writer: GGUFWriter, kind: str, about: GgufMetadata) -> None:
    writer.add_type(kind)
    writer.add_name(about.name)
    if about.licence:
        writer.add_license(about.licence)
    if about.base:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, about.base)


def _write_tensors(writer: GGUFWriter, tensors: list[_Tensor]) -> None:
    """One at a time is in memory."""
    for one in tensors:
        block, packed_block = GGML_QUANT_SIZES[one.kind]
        size = math.prod(one.shape) // block * packed_block
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), size, raw_dtype=one.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in tensors:
            with np.errstate(over="ignore"):
                packed = quants.quantize(one.values(), one.kind)
            if one.kind is GGMLQuantizationType.F16 and not np.isfinite(packed).all():
                raise InvalidInput(
                    f"{one.name} has numbers beyond 65504, which f16 cannot hold.", "Use --outtype bf16."
                )
            writer.write_tensor_data(packed)
    finally:
        writer.close()
