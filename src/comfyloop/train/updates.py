"""How gradients become new weights, and how weights are kept.

A recipe computes losses and knows nothing of this; one process with one copy of the model does it as below.
Whoever spreads a run over several processes gives recipes another object with the same methods.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from comfyloop.train import checkpoints
from comfyloop.train.checkpoints import RandomState
from comfyloop.train.spec import RunSpec

_Item = TypeVar("_Item")


class Trainable(Protocol):
    """What updates and the course of a run ask of a model, of the text or of the image side."""

    @property
    def trainable(self) -> list[tuple[str, nn.Parameter]]: ...

    def count_parameters(self) -> tuple[int, int]: ...

    def train(self) -> None: ...

    def save(self, place: Path) -> None: ...


class Updates:
    """AdamW on the trainable parameters of a model that this process has to itself."""

    def __init__(self, model: Trainable, spec: RunSpec) -> None:
        self.model = model
        self.max_grad_norm = spec.max_grad_norm or math.inf
        self.parameters = model.trainable
        self.optimizer = torch.optim.AdamW(
            [p for _, p in self.parameters], lr=spec.learning_rate, weight_decay=spec.weight_decay
        )

    def share(self, micro_batches: list[_Item]) -> list[_Item]:
        """Those of a step's micro-batches that this process computes."""
        return micro_batches

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Each value added up over all processes, where each has the share of its own micro-batches."""
        return values

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a share of the step's loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, rate: float) -> float:
        """One step at learning rate `rate`, gradients clipped and then forgotten; their norm before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self.parameters], self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def save_checkpoint(self, folder: Path, step: int, random_state: RandomState, fingerprint: str) -> None:
        checkpoints.save(folder, step, self.parameters, self.optimizer, random_state, fingerprint)

    def restore_checkpoint(self, folder: Path, fingerprint: str) -> int:
        """Put back the newest valid checkpoint; the step it was taken after, 0 when there is none."""
        return checkpoints.restore_newest(folder, self.parameters, self.optimizer, fingerprint)

    def save_result(self, place: Path) -> None:
        self.model.save(place)
