"""Identifies base models, and checks whether a side of a version fits one. Works on files, without torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comfyloop.errors import InvalidInput, ModelError, NotFound
from comfyloop.files import there
from comfyloop.models.adapter_check import Limits, Shape, check
from comfyloop.models.rope import RopeScaling
from comfyloop.registry.manifest import BaseModelOf, line
from comfyloop.stable_diffusion import layout, shapes
from comfyloop.stable_diffusion.folder import read_folder
from comfyloop.stable_diffusion.header import read_header
from comfyloop.stable_diffusion.look import NAMES

SAMPLE = 1024
"""Bytes of each tensor that count: models that differ do so everywhere."""
PUBLIC = re.compile(r"^(starter|starter-image|[\w.-]+/[\w.-]+)$")
"""Names that mean the same on every machine."""
_LIMITS = Limits("ComfyLoop", outside=True, dora=True, patterns=True)
_KEY = re.compile(
    r"^(?P<module>lora_(unet|transformer|te\d?)_\w+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)$"
)


def named(model: str) -> str:
    """A base model's name for others, without the folders of this machine."""
    if there(model) is not None:
        return line(Path(model).name)
    return line(model.removeprefix("hf:").removeprefix("ms:"))


def text_base(model: str, place: str) -> BaseModelOf:
    """Args:
    model: As it is set.
    place: What is loaded for it.
    """
    folder = local(place)
    if folder is None:
        return BaseModelOf(name=named(model))
    kind = ""
    if (config := folder / "config.json").is_file():
        kind = str(json.loads(config.read_text("utf-8")).get("model_type", ""))
    return BaseModelOf(name=named(model), kind=kind, weights=fingerprint(folder))


def image_base(model: str, place: str) -> BaseModelOf:
    path = there(place)
    if path is None:
        return BaseModelOf(name=named(model))
    return BaseModelOf(name=named(model), kind=_family(path), weights=fingerprint(path))


def local(model: str) -> Path | None:
    """The folder of a text model, a hub's that was downloaded too; None where it is not on this machine."""
    path = there(model)
    if path is not None:
        return path if path.is_dir() else None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return None
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, local_files_only=True))
    except Exception:  # not there, or not looked for: the hub's own errors are many
        return None


def fingerprint(place: Path) -> str:
    """SHA-256 over the names, kinds, shapes and first bytes of a model's tensors, in whatever files they lie; empty
    where it has no safetensors."""
    described_tensors: dict[str, str] = {}
    for file in sorted(place.rglob("*.safetensors")) if place.is_dir() else [place]:
        under = file.parent.relative_to(place).as_posix() if place.is_dir() else "."
        for name, description in _tensors(file):
            described_tensors[f"{under}/{name}"] = description
    if not described_tensors:
        return ""
    return hashlib.sha256(
        "\n".join(f"{name} {described_tensors[name]}" for name in sorted(described_tensors)).encode()
    ).hexdigest()


def _tensors(file: Path) -> Iterator[tuple[str, str]]:
    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                handle.seek(8 + size + begin)
                first = hashlib.sha256(handle.read(min(SAMPLE, end - begin))).hexdigest()
                yield name, f"{entry['dtype']} {entry['shape']} {first}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is not a whole safetensors file ({error}).", "Download it again.") from None


def refuse_other_base(what: str, made_for: BaseModelOf, here: BaseModelOf) -> None:
    """Raise InvalidInput when a side was trained on another model than the project's.

    Models of the same kind and shape accept each other's adapters but answer worse with them, so weights are
    compared too, unless both have the same public name.
    """
    sentence = (
        f"{what} was trained on {_described(made_for)}, and this project's base model is {_described(here)}"
    )
    hint = "Import it into a project with that base model: comfyloop up --model MODEL --project NAME."
    if made_for.kind and here.kind and made_for.kind != here.kind:
        raise InvalidInput(f"{sentence}: it does not fit.", hint)
    same_name = made_for.name == here.name and PUBLIC.match(here.name) is not None
    if made_for.weights and here.weights and made_for.weights != here.weights and not same_name:
        raise InvalidInput(
            f"{sentence}, which has other weights: it would answer otherwise than it learned to.", hint
        )


def _described(base: BaseModelOf) -> str:
    return f"{base.name} ({NAMES.get(base.kind, base.kind)})" if base.kind else base.name


def check_text(what: str, folder: Path, place: str, positions: RopeScaling | None) -> None:
    """Raise InvalidInput if a text adapter has a tensor that does not belong to a LoRA, or does not fit the base
    model."""
    weights = folder / "adapter_model.safetensors"
    _whole(what, weights)
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{what} has an adapter_config.json that cannot be read: {error}.", "Export it again."
        ) from None
    base_folder = local(place)
    try:
        check(what, str(folder), _LIMITS, str(base_folder or ""), positions=positions)
    except NotFound as error:
        raise InvalidInput(
            f"{what} lacks a part of its text side. {error.message}", "Export it again."
        ) from None


def check_image(what: str, file: Path, place: str) -> None:
    """Raise InvalidInput if an image LoRA has a tensor without a kohya key, or for a module that the image model
    does not have."""
    shape_of = _whole(what, file)
    parts: dict[str, dict[str, Shape]] = {}
    for key, shape in shape_of.items():
        match = _KEY.match(key)
        if match is None:
            raise InvalidInput(f"{what} has an unknown tensor {key[:120]!r}; an image LoRA has kohya's keys.")
        parts.setdefault(match["module"], {})[match["part"]] = shape
    if not parts:
        raise InvalidInput(f"{what} has an image side without tensors.")
    modules = _modules(Path(place)) if there(place) is not None else set()
    for module, own in parts.items():
        down, up = own.get("lora_down.weight"), own.get("lora_up.weight")
        if down is None or up is None or len(down) != len(up) or len(down) not in (2, 4) or down[0] != up[1]:
            raise InvalidInput(f"{what} has tensors of {module} that do not belong together.")
        if modules and module not in modules:
            raise InvalidInput(
                f"{what} is for a module {module} that this project's image model does not have: it does not fit."
            )
    from comfyloop.models.adapter_check import not_finite

    if odd := not_finite(file):
        raise InvalidInput(f"{what}: {odd} contains numbers that are not finite.")


def _whole(what: str, file: Path) -> Mapping[str, Shape]:
    if not file.is_file():
        raise InvalidInput(f"{what} lacks {file.name}.", "Export it again.")
    try:
        return read_header(file).shapes
    except ModelError as error:
        raise InvalidInput(f"{what} cannot be read: {error.message}", "Export it again.") from None


def _family(place: Path) -> str:
    if place.is_dir():
        return read_folder(place).family
    return shapes.family(read_header(place).shapes)


def _modules(place: Path) -> set[str]:
    """The modules of an image model as kohya's keys name them."""
    if place.is_dir():
        modules: set[str] = set()
        for folder, prefix in _PARTS.items():
            for file in sorted((place / folder).glob("*.safetensors")):
                names = read_header(file).shapes
                modules |= {_kohya(prefix, name) for name in names if name.endswith(".weight")}
        if (place / "text_encoder_2").is_dir():
            modules |= {
                key.replace("lora_te_", "lora_te1_", 1) for key in modules if key.startswith("lora_te_")
            }
        return modules
    return set(_modules_of_file(read_header(place).shapes))


_PARTS = {
    "unet": "lora_unet",
    "transformer": "lora_transformer",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
}


def _kohya(prefix: str, tensor: str) -> str:
    return f"{prefix}_{tensor.removesuffix('.weight').replace('.', '_')}"


def _modules_of_file(shape_of: shapes.Shapes) -> Iterator[str]:
    kind = shapes.family(shape_of)
    _, shape = shapes.unet(shape_of, kind)
    names = layout.unet_modules(shape)
    at = layout.UNET_PREFIX
    for name in shape_of:
        if name.startswith(at) and name.endswith(".weight"):
            yield _kohya("lora_unet", layout.rename(name.removeprefix(at), names))
    te = ("lora_te1", "lora_te2") if kind == "sdxl" else ("lora_te", "lora_te")
    layers: list[tuple[str, dict[str, Any]] | None] = [shapes.clip(shape_of), shapes.open_clip(shape_of)]
    for prefix, encoder in zip(te, layers, strict=True):
        for layer in range(encoder[1]["num_hidden_layers"] if encoder else 0):
            for name in (
                "self_attn_q_proj",
                "self_attn_k_proj",
                "self_attn_v_proj",
                "self_attn_out_proj",
                "mlp_fc1",
                "mlp_fc2",
            ):
                yield f"{prefix}_text_model_encoder_layers_{layer}_{name}"
