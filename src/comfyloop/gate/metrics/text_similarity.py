"""How well a drawn picture fits the person's own prompt."""

from __future__ import annotations

from comfyloop.gate.metrics._metric import Metric

METRIC = Metric("text_similarity", "drawing to prompt")
