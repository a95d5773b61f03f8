"""Checkpoints: everything that the next step depends on, valid after a kill at any moment.

A checkpoint is written beside its place, flushed to the disk and renamed; `state.json` holds the hash of each file,
so a checkpoint that a failing disk has truncated is skipped in favour of the previous one. Nothing is pickled. If
several processes train, each writes its part of the same checkpoint and one commits it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from comfyloop import platforms
from comfyloop.errors import InvalidInput
from comfyloop.models import devices
from comfyloop.platforms import sync
from comfyloop.train.run.directory import disk_error

KEEP = 2


@dataclass(frozen=True)
class RandomState:
    """The state of torch's generators: of the processor's, and of the accelerator's under its kind (`cuda`, `mps`)."""

    cpu: Tensor
    others: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def now(cls) -> RandomState:
        place = devices.choose()
        state = devices.random_state(place)
        return cls(torch.get_rng_state(), {} if state is None else {place.type: state})

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        place = devices.choose()
        if place.type in self.others:
            devices.set_random_state(place, self.others[place.type])


def save(
    folder: Path,
    step: int,
    parameters: list[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    random_state: RandomState,
    fingerprint: str,
    more: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `folder/step-N` and delete all but the newest two. Raises StorageError when the disk refuses.

    Args:
        more: What else the next step depends on.
    """
    making = begin(folder, step)
    save_tensors(making, parameters, optimizer, random_state, more=more)
    commit(making, folder, step, fingerprint)


def restore_newest(
    folder: Path,
    parameters: list[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
) -> tuple[int, dict[str, Tensor]]:
    """Restore the newest valid checkpoint; returns the step after which it was taken (0 if there is none), and
    `more`.

    Raises:
        InvalidInput: It is of another spec or other data, so going on from it would mix two runs.
    """
    step = newest(folder, fingerprint)
    return step, load_tensors(folder / f"step-{step}", parameters, optimizer) if step else {}


def begin(folder: Path, step: int) -> Path:
    """An empty directory for the files of a checkpoint, which becomes valid only by `commit`."""
    making = folder / f".step-{step}.making"
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
    except OSError as error:
        raise disk_error(making, error) from error
    return making


def commit(making: Path, folder: Path, step: int, fingerprint: str, world_size: int = 1) -> None:
    """Turn the written files into `folder/step-N`, flushed to disk, and delete all but the newest two."""
    place = folder / f"step-{step}"
    try:
        files = sorted(file for file in making.rglob("*") if file.is_file())
        hashes = {str(file.relative_to(making)): _sha256(file) for file in files}
        state = {"step": step, "fingerprint": fingerprint, "world_size": world_size, "files": hashes}
        (making / "state.json").write_text(json.dumps(state, indent=2), "utf-8")
        for path in (*making.rglob("*"), making):
            sync(path)
        shutil.rmtree(place, ignore_errors=True)
        platforms.rename(making, place)
        sync(folder)
    except OSError as error:
        shutil.rmtree(making, ignore_errors=True)
        raise disk_error(place, error) from error
    for old in _steps(folder)[KEEP:]:
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)


def newest(folder: Path, fingerprint: str, world_size: int = 1) -> int:
    """The step of the newest valid checkpoint, 0 when there is none.

    Raises:
        InvalidInput: It is of another spec or other data, or was written by more or fewer processes.
    """
    for step in _steps(folder):
        place = folder / f"step-{step}"
        state = _valid_state(place)
        if state is None:
            continue
        if state["fingerprint"] != fingerprint:
            raise InvalidInput(
                f"The checkpoint {place} belongs to another spec or other data than this run has now.",
                "Restore spec.json and the data, or start a new run directory.",
            )
        if (wrote := state.get("world_size", 1)) != world_size:
            raise InvalidInput(
                f"The checkpoint {place} was written by {wrote} process{'es' * (wrote > 1)}, and this run has "
                f"{world_size}.",
                f"Set world_size = {wrote} in spec.json again, or start a new run directory.",
            )
        return step
    return 0


def save_tensors(
    place: Path,
    parameters: list[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    random_state: RandomState,
    *,
    more: Mapping[str, Tensor] | None = None,
    suffix: str = "",
) -> None:
    """Write parameters (only this process's shards), the optimiser's state and the random state."""
    state = {
        f"{name}|{key}": _whole(value)
        for name, parameter in parameters
        for key, value in optimizer.state[parameter].items()
    }
    random = {**random_state.others, "cpu": random_state.cpu}
    try:
        save_file({n: _whole(p) for n, p in parameters}, place / f"parameters{suffix}.safetensors")
        save_file(state, place / f"optimizer{suffix}.safetensors")
        save_file(random, place / f"random{suffix}.safetensors")
        if more:
            save_file(dict(more), place / f"more{suffix}.safetensors")
    except OSError as error:
        raise disk_error(place, error) from error


def load_tensors(
    place: Path,
    parameters: list[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    *,
    suffix: str = "",
) -> dict[str, Tensor]:
    """Restore what `save_tensors` wrote; returns `more`."""
    tensors = load_file(place / f"parameters{suffix}.safetensors")
    with torch.no_grad():
        for name, parameter in parameters:
            local(parameter).copy_(tensors[name])
    by_name = dict(parameters)
    for key, value in load_file(place / f"optimizer{suffix}.safetensors").items():
        name, _, field = key.rpartition("|")
        parameter = by_name[name]
        scalar = field == "step" and value.dim() == 0
        optimizer.state[parameter][field] = value if scalar else _like(parameter, value)
    random = load_file(place / f"random{suffix}.safetensors")
    RandomState(random.pop("cpu"), random).restore()
    more = place / f"more{suffix}.safetensors"
    return load_file(more) if more.exists() else {}


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor; a plain tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    """A copy that safetensors can write."""
    return local(tensor.detach()).contiguous().cpu()


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A value of the optimiser's state, on the device of its parameter and sharded in the same way."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _valid_state(place: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        state: dict[str, Any] = json.loads((place / "state.json").read_text("utf-8"))
        if all(_sha256(place / name) == digest for name, digest in state["files"].items()):
            return state
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
