"""Mean cosine of a drawn picture's features to those of kept pictures."""

from __future__ import annotations

from comfyloop.gate.metrics._metric import Metric

METRIC = Metric("kept_similarity", "drawing to kept pictures")
