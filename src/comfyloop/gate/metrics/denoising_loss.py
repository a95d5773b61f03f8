"""Mean squared error of what the image model says of a noisy kept picture."""

from __future__ import annotations

from comfyloop.gate.metrics._metric import Metric

METRIC = Metric("denoising_loss", "denoising loss", higher_is_better=False, digits=4)
