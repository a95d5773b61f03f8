"""How far a run is, by the status and the log that its trainer leaves in its directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from comfyloop.records import Run


class Progress(NamedTuple):
    state: str
    phase: str
    step: int
    total: int
    loss: float | None
    eta_seconds: float | None

    @property
    def share(self) -> float:
        return min(1.0, self.step / self.total) if self.total else 0.0


def progress_of(run: Run) -> Progress:
    status = status_of(run)
    return Progress(
        state=str(status.get("state", run.state)),
        phase=str(status.get("phase", "")),
        step=int(status.get("step") or 0),
        total=int(status.get("total_steps") or 0),
        loss=status.get("loss"),
        eta_seconds=status.get("eta_seconds"),
    )


def status_of(run: Run) -> dict[str, Any]:
    """The trainer's own status; empty where it has not begun, or its directory was removed."""
    try:
        status = json.loads((Path(run.path) / "status.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
