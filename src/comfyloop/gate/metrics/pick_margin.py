"""By how much more than the untrained model it takes the picked picture of a pair for its own, in units of the
denoising loss.
"""

from __future__ import annotations

from comfyloop.gate.metrics._metric import Metric

METRIC = Metric("pick_margin", "margin of picks", digits=5)
