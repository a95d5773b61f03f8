"""Adapters: a PEFT directory is read, verified as a whole, applied row by row, and gone without a trace.

The model's own weights are never touched: a forward hook on each targeted linear layer adds the adapter's
part to the rows that asked for it, in float32 as PEFT does. So a batch may mix adapters, attaching one is a
few dictionary entries between two decode steps, and after it is detached the base answers bit for bit as
before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comfyloop.errors import InvalidInput, NotFound
from comfyloop.models.adapter_check import rank_and_scale, refuse_no_effect
from comfyloop.models.lora_start import refuse_changed_base
from comfyloop.models.quantization import plain_weight
from comfyloop.models.rope import RopeScaling, refuse_other_positions

_PREFIX = "base_model.model."
_PART = re.compile(r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.weight)?$")


@dataclass(frozen=True)
class LoraPair:
    """What one linear layer gets: ``scaling * (x A^T) B^T``, with DoRA's magnitudes where there are any."""

    a: Tensor  # (r, in) float32
    b: Tensor  # (out, r) float32
    scaling: float
    magnitude: Tensor | None = None  # (out,) DoRA: magnitude / norm of the adapted weight

    def __call__(self, module: nn.Linear, x: Tensor, out: Tensor) -> Tensor:
        delta = nn.functional.linear(nn.functional.linear(x.to(self.a.dtype), self.a), self.b) * self.scaling
        if self.magnitude is None:
            return (out + delta).to(out.dtype)
        bias = module.bias if module.bias is not None else 0
        return ((out - bias + delta) * self.magnitude + bias).to(out.dtype)


@dataclass(frozen=True, eq=False)
class Adapter:
    name: str
    path: Path
    sha256: str  # of its weights and configuration
    r: int
    alpha: float
    pairs: Mapping[str, LoraPair]  # by the name of the layer in the model

    @property
    def bytes(self) -> int:
        return sum(p.a.nbytes + p.b.nbytes for p in self.pairs.values())


def read_adapter(name: str, path: Path, model: nn.Module, rope_scaling: RopeScaling | None = None) -> Adapter:
    """Read the PEFT directory `path` for `model`, which runs with `rope_scaling`, all of it or nothing.

    Raises:
        NotFound: the directory or one of its files does not exist.
        InvalidInput: it is not a LoRA, a tensor is missing, left over or of the wrong shape, or it asks for
            something that this engine cannot apply, or was trained on other positions. The sentence names
            the tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as load_safetensors

    config_file, weights_file = path / "adapter_config.json", path / "adapter_model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise NotFound(f"Adapter {name}: {file} does not exist.", "Give a directory that PEFT has saved.")
    config_bytes, weights_bytes = config_file.read_bytes(), weights_file.read_bytes()
    try:
        config = json.loads(config_bytes)
        tensors: dict[str, Tensor] = load_safetensors(weights_bytes)
    except (ValueError, SafetensorError) as error:
        raise InvalidInput(f"Adapter {name} cannot be read: {error}") from error
    _refuse_what_is_not_applied(name, config)
    refuse_other_positions(name, path, rope_scaling)

    found = _by_module(name, tensors)
    modules = dict(model.named_modules())
    linears = {n: m for n, m in modules.items() if isinstance(m, nn.Linear)}
    expected = {n for n in modules if _is_target(config, n, n in linears, model)}
    odd = sorted(expected - linears.keys())
    if odd:
        raise InvalidInput(f"Adapter {name} targets {odd[0]}, which is not a linear layer of this model.")
    missing, extra = sorted(expected - found.keys()), sorted(found.keys() - expected)
    if missing:
        raise InvalidInput(
            f"Adapter {name} has no tensors for {len(missing)} of its {len(expected)} target layers, "
            f"the first {missing[0]}."
        )
    if extra:
        raise InvalidInput(
            f"Adapter {name} has tensors for {len(extra)} layers that this model lacks or that its "
            f"target_modules do not name, the first {extra[0]}."
        )
    if not expected:
        raise InvalidInput(f"Adapter {name} targets no layer of this model.")
    pairs = {n: _pair(name, n, linears[n], found[n], config) for n in sorted(expected)}
    _refuse_what_is_not_finite(name, found)
    digest = hashlib.sha256(config_bytes + weights_bytes).hexdigest()
    return Adapter(name, path, digest, int(config["r"]), float(config["lora_alpha"]), pairs)


def _refuse_what_is_not_applied(name: str, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise InvalidInput(
            f"Adapter {name} is a {config.get('peft_type')} adapter; this engine applies LoRA."
        )
    refuse_changed_base(f"Adapter {name}", config)
    refuse_no_effect(name, config)
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise InvalidInput(f"Adapter {name} has trained biases, which this engine does not apply.")
    for field in ("modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication"):
        if config.get(field):
            raise InvalidInput(f"Adapter {name} uses {field}, which this engine does not apply.")
    if config.get("fan_in_fan_out"):
        raise InvalidInput(
            f"Adapter {name} is for transposed weights (fan_in_fan_out), which this model has not."
        )


def _refuse_what_is_not_finite(name: str, found: Mapping[str, Mapping[str, Tensor]]) -> None:
    parts = [(f"{module}.{part}", t) for module, its in sorted(found.items()) for part, t in its.items()]
    if bool(
        torch.isfinite(torch.cat([t.flatten().float() for _, t in parts])).all()
    ):  # at once: it is quicker
        return
    first = next(part for part, tensor in parts if not bool(torch.isfinite(tensor.float()).all()))
    raise InvalidInput(f"Adapter {name}: {first} contains numbers that are not finite.")


def _by_module(name: str, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _PART.match(key.removeprefix(_PREFIX))
        if match is None:
            raise InvalidInput(
                f"Adapter {name} has a tensor {key} that is not a LoRA tensor of a linear layer."
            )
        found.setdefault(match["module"], {})[match["part"]] = tensor
    return found


def _is_target(config: Mapping[str, Any], module: str, linear: bool, model: nn.Module) -> bool:
    """Whether PEFT would put a LoRA on `module`."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if _names(excluded, module):
        return False
    if targets == "all-linear":
        head = getattr(model, "get_output_embeddings", lambda: None)()
        return linear and (head is None or model.get_submodule(module) is not head)
    if not _names(targets, module):
        return False
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module)
        if match:
            return int(match["index"]) in ([layers] if isinstance(layers, int) else layers)
    return False


def _names(names: str | Sequence[str] | None, module: str) -> bool:
    if not names:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == n or module.endswith(f".{n}") for n in names)


def _pair(
    name: str, module: str, linear: nn.Linear, parts: Mapping[str, Tensor], config: Mapping[str, Any]
) -> LoraPair:
    rank, scaling = rank_and_scale(config, module)
    shapes: dict[str, tuple[int, ...]] = {
        "lora_A": (rank, linear.in_features),
        "lora_B": (linear.out_features, rank),
    }
    if config.get("use_dora"):
        shapes["lora_magnitude_vector"] = (linear.out_features,)
    for part, shape in shapes.items():
        if part not in parts:
            raise InvalidInput(f"Adapter {name} has no tensor {module}.{part}.")
        if tuple(parts[part].shape) != shape:
            raise InvalidInput(
                f"Adapter {name}: {module}.{part} has the shape {tuple(parts[part].shape)}; with r={rank} on "
                f"this model it must be {shape}."
            )
    left_over = sorted(parts.keys() - shapes.keys())
    if left_over:
        raise InvalidInput(
            f"Adapter {name} has a tensor {module}.{left_over[0]} that its configuration excludes."
        )
    device = linear.weight.device
    a, b = (parts[p].to(device, torch.float32) for p in ("lora_A", "lora_B"))
    magnitude = None
    if config.get("use_dora"):
        norm = torch.linalg.norm(plain_weight(linear) + scaling * (b @ a), dim=1)
        magnitude = parts["lora_magnitude_vector"].to(device, torch.float32) / norm
    return LoraPair(a, b, scaling, magnitude)


class LoraRows:
    """Which adapter each row of the present forward pass uses. Owned by the model thread."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._hooks: dict[str, Any] = {}  # layer -> its hook, while any adapter targets it
        self._rows = 0
        self._present: list[tuple[Adapter, Tensor | None]] = []
        self.attached: dict[str, Adapter] = {}

    def attach(self, adapter: Adapter) -> None:
        self.attached[adapter.name] = adapter
        for layer in adapter.pairs.keys() - self._hooks.keys():
            module = self._model.get_submodule(layer)
            self._hooks[layer] = module.register_forward_hook(partial(self._add, layer))

    def detach(self, name: str) -> None:
        del self.attached[name]
        self._present = []  # of the last pass; the next one selects its own
        used = {layer for adapter in self.attached.values() for layer in adapter.pairs}
        for layer in self._hooks.keys() - used:
            self._hooks.pop(layer).remove()

    def select(self, adapters: Sequence[Adapter | None]) -> None:
        """Row i of the next forward passes is answered with `adapters[i]` (None: the base)."""
        distinct = {id(a): a for a in adapters if a is not None}.values()
        self._rows = len(adapters)
        self._present = []
        for adapter in distinct:
            rows = [i for i, a in enumerate(adapters) if a is adapter]
            self._present.append((adapter, None if len(rows) == len(adapters) else torch.tensor(rows)))

    def _add(self, layer: str, module: nn.Linear, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        for adapter, rows in self._present:
            pair = adapter.pairs.get(layer)
            if pair is None:
                continue
            if rows is None:
                out = pair(module, args[0], out)
            elif out.shape[0] != self._rows:
                raise RuntimeError(f"{layer} does not keep the rows of a batch apart.")
            else:
                out[rows] = pair(module, args[0][rows], out[rows])
        return out
