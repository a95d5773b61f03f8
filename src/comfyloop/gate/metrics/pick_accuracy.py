"""1 where the margin of picks is above zero, 0 where it is below, 0.5 where nothing tells the pictures apart."""

from __future__ import annotations

from comfyloop.gate.metrics._metric import Metric

METRIC = Metric("pick_accuracy", "share of picks preferred")
