"""What the person's picks and ratings say of a drawn picture: log odds that it is liked."""

from __future__ import annotations

from comfyloop.gate.metrics._metric import Metric

METRIC = Metric("taste", "your taste of drawings, log odds")
