"""A peer's rule beside the gate's: `soup-cli`'s ship verdict, asked in its own Python.

Its package is not a dependency: `--peer PYTHON` names an interpreter that has it (`pip install soup-cli`).
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from typing import Any

from comfyloop.gate.metrics import EDIT_DISTANCE, LOG_LIKELIHOOD
from comfyloop.records import GateReport

_ASK = """
import json, sys
from soup_cli import __version__
from soup_cli.utils.ship_verdict import build_task_win, compute_benchmark_deltas, decide_ship
told = json.load(sys.stdin)
verdict = decide_ship(
    build_task_win("metric", *told["task"]),
    compute_benchmark_deltas({"general": told["general"][0]}, {"general": told["general"][1]}),
)
ships = verdict.decision == "SHIP"
print(json.dumps({"ships": ships, "reason": str(verdict.failed_rule or ""), "version": __version__}))
"""


def verdict(python: str, report: GateReport, general: tuple[float, float] | None) -> dict[str, Any]:
    """What the rule says of the evidence that the gate collected.

    Its task metric is one minus the mean edit distance to the held-out corrections, its benchmark the general
    questions: `general`, (live, candidate) in 0..1, or else the mean probability of a token of the answers.

    Returns:
        `ships`, `reason`, `version`, `task` and `general`; or `skipped`, with the reason.
    """
    answered = [item.scores[EDIT_DISTANCE] for item in report.items if EDIT_DISTANCE in item.scores]
    if not answered:
        return {"skipped": "The gate answered no held-out correction."}
    task = [1 - statistics.fmean(pair[side] for pair in answered) for side in (0, 1)]
    if general is None:
        pairs = [item.scores[LOG_LIKELIHOOD] for item in report.items if item.slice == "general"]
        if not pairs:
            return {"skipped": "The gate asked no general question."}
        general = (
            statistics.fmean(math.exp(live) for live, _ in pairs),
            statistics.fmean(math.exp(candidate) for _, candidate in pairs),
        )
    evidence = {"task": task, "general": general}
    result = subprocess.run(
        [python, "-c", _ASK], input=json.dumps(evidence), capture_output=True, text=True, timeout=120
    )
    if result.returncode:
        return {"skipped": f"{python} has no soup-cli: {result.stderr.strip().splitlines()[-1]}"}
    decision: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return decision | evidence
