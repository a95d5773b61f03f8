"""Checkpoints: everything that the next step depends on, valid at any kill.

A checkpoint is written beside its place, flushed to the disk and renamed; `state.json` holds the hash of
each file, so one that a dying disk has cut short is passed over for the one before it. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from comfyloop.durable import sync
from comfyloop.errors import InvalidInput
from comfyloop.train.status import disk_error

KEEP = 2


@dataclass(frozen=True)
class RandomState:
    """The state of torch's generators."""

    cpu: Tensor
    cuda: Tensor | None = None

    @classmethod
    def now(cls) -> RandomState:
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


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
    place = folder / f"step-{step}"
    making = folder / f".step-{step}.making"
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        save_file(
            {n: p.detach().contiguous().cpu() for n, p in parameters}, making / "parameters.safetensors"
        )
        save_file(_optimizer_tensors(parameters, optimizer), making / "optimizer.safetensors")
        random = {"cpu": random_state.cpu} | (
            {"cuda": random_state.cuda} if random_state.cuda is not None else {}
        )
        save_file(random, making / "random.safetensors")
        if more:
            save_file(dict(more), making / "more.safetensors")
        hashes = {file.name: _sha256(file) for file in sorted(making.iterdir())}
        state = {"step": step, "fingerprint": fingerprint, "files": hashes}
        (making / "state.json").write_text(json.dumps(state, indent=2))
        for file in making.iterdir():
            sync(file)
        sync(making)
        shutil.rmtree(place, ignore_errors=True)
        making.rename(place)
        sync(folder)
    except OSError as error:
        shutil.rmtree(making, ignore_errors=True)
        raise disk_error(place, error) from error
    for old in _steps(folder)[KEEP:]:
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)


def restore_newest(
    folder: Path,
    parameters: list[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
) -> tuple[int, dict[str, Tensor]]:
    """Put back the newest valid checkpoint; the step it was taken after, 0 when there is none, and `more`.

    Raises:
        InvalidInput: It is of another spec or other data, so going on from it would mix two runs.
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
        tensors = load_file(place / "parameters.safetensors")
        with torch.no_grad():
            for name, parameter in parameters:
                parameter.copy_(tensors[name])
        _restore_optimizer(load_file(place / "optimizer.safetensors"), parameters, optimizer)
        random = load_file(place / "random.safetensors")
        RandomState(random["cpu"], random.get("cuda")).restore()
        more = place / "more.safetensors"
        return step, load_file(more) if more.exists() else {}
    return 0, {}


def _steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _valid_state(place: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        state: dict[str, Any] = json.loads((place / "state.json").read_text())
        if all(_sha256(place / name) == digest for name, digest in state["files"].items()):
            return state
    return None


def _optimizer_tensors(
    parameters: list[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return {
        f"{name}|{key}": value.detach().contiguous().cpu()
        for name, parameter in parameters
        for key, value in optimizer.state[parameter].items()
    }


def _restore_optimizer(
    tensors: dict[str, Tensor], parameters: list[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> None:
    by_name = dict(parameters)
    for key, value in tensors.items():
        name, _, field = key.rpartition("|")
        parameter = by_name[name]
        device = "cpu" if field == "step" and value.dim() == 0 else parameter.device
        optimizer.state[parameter][field] = value.to(device)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
