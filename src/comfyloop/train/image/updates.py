"""Updates that also keep a moving average of the weights, and save that instead of the last ones."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from comfyloop.train.image.trainable import TrainableImageModel
from comfyloop.train.run.updates import OptimizerStep
from comfyloop.train.specs.image import ImageTrainSpec


class AveragedOptimizerStep(OptimizerStep):
    """AdamW, and after each step average = decay * average + (1 - decay) * weights."""

    def __init__(self, model: TrainableImageModel, spec: ImageTrainSpec) -> None:
        super().__init__(model, spec)
        self.decay = spec.ema_decay
        self.average = [(f"average.{n}", nn.Parameter(p.detach().clone())) for n, p in self.parameters]

    def update(self, rate: float) -> float:
        norm = super().update(rate)
        with torch.no_grad():
            for (_, average), (_, weight) in zip(self.average, self.parameters, strict=True):
                average.lerp_(weight, 1 - self.decay)
        return norm

    def kept(self) -> list[tuple[str, nn.Parameter]]:
        return [*self.parameters, *self.average]

    def save_result(self, place: Path) -> None:
        with torch.no_grad():
            for (_, average), (_, weight) in zip(self.average, self.parameters, strict=True):
                weight.copy_(average)
        self.write_back()
        super().save_result(place)


def updates_for(model: TrainableImageModel, spec: ImageTrainSpec) -> OptimizerStep:
    return AveragedOptimizerStep(model, spec) if spec.ema_decay > 0 else OptimizerStep(model, spec)
