"""Applies gradients to weights, and saves weights.

A recipe only computes losses; this module does the rest for one process with one copy of the model. `parallel` has
the same interface for several processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from comfyloop.errors import RunFailed
from comfyloop.train.run import checkpoints
from comfyloop.train.run.checkpoints import RandomState
from comfyloop.train.specs.base import RunSpec

SMALLEST_SCALE = 2.0**-10
"""A float16 run whose gradients overflow even at this loss scale has diverged."""


@dataclass(frozen=True)
class Share:
    """The part of a micro-batch that a process computes.

    Attributes:
        weight: 0 where the micro-batch is too small for all processes, and this one only keeps pace.
    """

    indices: list[int]
    weight: float = 1.0


class Trainable(Protocol):
    """The interface of a trainable model, of the text or of the image side."""

    dtype: torch.dtype
    device: torch.device

    @property
    def trainable(self) -> list[tuple[str, nn.Parameter]]: ...

    def count_parameters(self) -> tuple[int, int]: ...

    def train(self) -> None: ...

    def save(self, place: Path) -> None: ...


class OptimizerStep:
    """AdamW on the trainable parameters of a model that only this process trains.

    Half-precision weights are updated through a float32 copy: a step of learning_rate is smaller than the
    resolution of bfloat16 and would be rounded away. In float16 the loss is scaled, so that small gradients do not
    vanish, and a step whose gradients overflow is skipped.
    """

    def __init__(self, model: Trainable, spec: RunSpec) -> None:
        self.model = model
        self.max_grad_norm = spec.max_grad_norm or math.inf
        self._weights = model.trainable
        self.parameters = [(name, _in_float32(weight)) for name, weight in self._weights]
        # On a processor the fused kernel takes a fifth of the time; what is sharded over ranks is left to torch.
        fused = model.device.type == "cpu" and spec.world_size == 1
        self.optimizer = torch.optim.AdamW(
            [p for _, p in self.parameters],
            lr=spec.learning_rate,
            betas=(0.9, spec.adam_beta2),
            weight_decay=spec.weight_decay,
            fused=fused or None,
        )
        self.beside: list[tuple[str, nn.Parameter]] = []
        """What else the next step depends on, and no step changes by its gradient."""
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)

    def share(self, micro_batches: list[list[int]]) -> list[Share]:
        """The part of each of a step's micro-batches that this process computes."""
        return [Share(indices) for indices in micro_batches]

    def agree(self, wish: int) -> int:
        """The maximum of the requests to all processes of the run; all call this at the same points."""
        return wish

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Each value added up over all processes, where each has the share of its own micro-batches."""
        return values

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Add the gradient of a share of the step's loss; `last`: of its last micro-batch."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self, rate: float) -> float:
        """One step at learning rate `rate`, with clipped gradients, which are cleared afterwards; returns their
        norm before clipping.

        Raises:
            RunFailed: Gradients are not finite; in float16, however small the loss is made. The weights are as
                they were.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for (_, weight), (_, parameter) in self._copied():
            parameter.grad = weight.grad.float() if weight.grad is not None else None
            weight.grad = None
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self.parameters], self.max_grad_norm)
        if not self.scaler.is_enabled() and not math.isfinite(norm):  # it would make every weight nan
            raise RunFailed(
                f"The gradients are no longer numbers (their norm is {float(norm)}): training has diverged.",
                f"Lower learning_rate (now {rate:g}) and start a new run.",
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.write_back()
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise RunFailed(
                "The gradients overflow float16 in every step: training has diverged.",
                "Set dtype to bfloat16 or float32, or lower learning_rate, and start a new run.",
            )
        return float(norm)

    def kept(self) -> list[tuple[str, nn.Parameter]]:
        """The content of a checkpoint besides the optimiser's state."""
        return [*self.parameters, *self.beside]

    def save_checkpoint(self, folder: Path, step: int, random_state: RandomState, fingerprint: str) -> None:
        scale = self.scaler.state_dict() if self.scaler.is_enabled() else {}
        more = {name: torch.tensor(float(value)) for name, value in scale.items()}
        checkpoints.save(folder, step, self.kept(), self.optimizer, random_state, fingerprint, more)

    def restore_checkpoint(self, folder: Path, fingerprint: str) -> int:
        """Restore the newest valid checkpoint; the step after which it was taken, 0 if there is none."""
        step, more = checkpoints.restore_newest(folder, self.kept(), self.optimizer, fingerprint)
        if self.scaler.is_enabled() and more:
            state = {name: float(value) for name, value in more.items()}
            counts = {name: int(state[name]) for name in ("growth_interval", "_growth_tracker")}
            self.scaler.load_state_dict(state | counts)
        self.write_back()
        return step

    def save_result(self, place: Path) -> None:
        self.model.save(place)

    def _copied(self) -> list[tuple[tuple[str, nn.Parameter], tuple[str, nn.Parameter]]]:
        pairs = zip(self._weights, self.parameters, strict=True)
        return [(weight, parameter) for weight, parameter in pairs if weight[1] is not parameter[1]]

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy `parameters` back into the model's own weights."""
        for (_, weight), (_, parameter) in self._copied():
            weight.copy_(parameter)


def _in_float32(weight: nn.Parameter) -> nn.Parameter:
    return weight if weight.dtype == torch.float32 else nn.Parameter(weight.detach().float())
