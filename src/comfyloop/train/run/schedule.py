"""The learning rate as a function of the step: no state to save, nothing to resume."""

from __future__ import annotations

import math

from comfyloop.train.specs.base import RunSpec


def learning_rate(step: int, total: int, spec: RunSpec) -> float:
    """Rate of optimiser step `step` (from 0) of `total`: a linear warm-up, then the schedule."""
    warmup = math.ceil(spec.warmup_ratio * total)
    if step < warmup:
        return spec.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    match spec.lr_scheduler_type:
        case "constant":
            return spec.learning_rate
        case "linear":
            return spec.learning_rate * (1 - progress)
        case "cosine":
            return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
