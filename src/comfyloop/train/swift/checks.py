"""Checks of an ms-swift run that ms-swift itself does not make. Imports no torch.

`SwiftProgress` collects the events of the process (`worker.py`); `check_run` compares them with the input.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyloop.errors import RunFailed

MEND = "Train with train_engine = comfyloop, or report this with the run's directory."


@dataclass
class SwiftProgress:
    """What ms-swift did so far, step by step."""

    world_size: int = 0
    total_steps: int = 0
    rows: dict[int, list[str]] = field(default_factory=dict)  # step -> hashes of its rows, in order
    tokens: dict[int, int] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    without_answer: int = 0

    def add(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "begin":
                self.world_size = event["world_size"]
                self.total_steps = event["total_steps"]
                for records in (
                    self.rows,
                    self.tokens,
                    self.losses,
                ):  # what a killed process did past its save
                    for step in [step for step in records if step > event["step"]]:
                        del records[step]
            case "step":
                batches = event["batches"]
                self.rows[event["step"]] = [row for batch in batches for row in batch["rows"]]
                self.tokens[event["step"]] = sum(batch["tokens"] for batch in batches)
                self.without_answer += sum(batch["without_answer"] for batch in batches)
            case "log" if "loss" in event["values"]:
                self.losses[event["step"]] = event["values"]["loss"]


def check_run(progress: SwiftProgress, row_hashes: Sequence[str], names: dict[str, str]) -> str:
    """Check a finished run; returns a summary in one sentence.

    Args:
        row_hashes: The hash of each row that was to be trained on; for `dpo` a chosen and a rejected one a pair.
        names: What a row is called in sentences, by its hash.

    Raises:
        RunFailed: Rows were left out, repeated or replaced, steps are missing, more or fewer processes than
            one trained, an answer had no token to learn, the loss is no number or never moved.
    """
    if progress.world_size != 1:
        raise RunFailed(
            f"ms-swift trained with {progress.world_size} processes, and one was asked for.",
            "Unset WORLD_SIZE, RANK and NPROC_PER_NODE, or train with train_engine = comfyloop.",
        )
    missing = [step for step in range(1, progress.total_steps + 1) if step not in progress.rows]
    if missing or not progress.total_steps:
        raise RunFailed(
            f"ms-swift took {len(progress.rows)} of {progress.total_steps} steps; step {(missing or [1])[0]} is "
            "missing.",
            MEND,
        )
    _check_rows([progress.rows[step] for step in sorted(progress.rows)], Counter(row_hashes), names)
    if progress.without_answer:
        raise RunFailed(
            f"ms-swift trained on {progress.without_answer} rows without an answer to learn.", MEND
        )
    losses = [progress.losses[step] for step in sorted(progress.losses)]
    if len(losses) < progress.total_steps:
        raise RunFailed(f"ms-swift logged a loss for {len(losses)} of {progress.total_steps} steps.", MEND)
    if not all(map(math.isfinite, losses)):
        raise RunFailed(
            f"The loss of ms-swift's step {next(i for i, x in enumerate(losses, 1) if not math.isfinite(x))} "
            "is no number: training has diverged.",
            "Lower learning_rate and start a new run.",
        )
    if len(losses) > 1 and len(set(losses)) == 1:
        raise RunFailed(f"The loss of ms-swift's run never moved from {losses[0]:g}.", MEND)
    tokens, rows_used = sum(progress.tokens.values()), sum(map(len, progress.rows.values()))
    used = (
        "every one" if rows_used >= len(row_hashes) else f"{rows_used}"
    )  # max_steps may end the run within a pass
    return (
        f"{used} of {len(row_hashes)} rows was used as it was given ({tokens} tokens in {len(losses)} steps), "
        f"by one process; loss {losses[0]:.4g} -> {losses[-1]:.4g}"
    )


def _check_rows(steps: Sequence[Sequence[str]], expected: Counter[str], names: dict[str, str]) -> None:
    """Every pass over the data uses every row once; the last pass may be cut short.

    A pass never begins in the middle of a step, so it ends with the step in which its rows are complete.
    """
    remaining = expected.copy()
    for number, rows in enumerate(steps, start=1):
        step_rows = Counter(rows)
        if strange := next((row for row in step_rows if row not in expected), None):
            raise RunFailed(
                f"ms-swift trained in step {number} on a row that is none of those given (its tokens have "
                f"the hash {strange}).",
                MEND,
            )
        if again := step_rows - remaining:
            unused = next(iter((remaining - step_rows) or remaining), "")
            raise RunFailed(
                f"ms-swift trained on {names.get(next(iter(again)), 'a row')} twice in one pass over the data"
                + (f", in the place of {names.get(unused, 'another one')}" if unused else "")
                + f" (step {number}).",
                MEND,
            )
        remaining -= step_rows
        if not remaining:
            remaining = expected.copy()
