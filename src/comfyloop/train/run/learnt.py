"""Checks whether a run has learned: compares its training loss at the end with the beginning. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pvariance

from comfyloop.errors import RunFailed
from comfyloop.recipes import RECIPES
from comfyloop.train.specs.text import TrainSpec

LOW = 0.1
"""Nats a token: answers that are as likely as that from the start are known already."""
FEWEST_STEPS = 8
"""A shorter run is not judged: a step or two says nothing."""
FEWEST_OF_ONE_PASS = 20
"""Nor one that sees each sample once, before there are so many steps: samples are not equally hard."""
ROUNDING = 1e-5
"""A loss that fell by no more than this share has not fallen."""
RISE = 0.05
"""By what share the loss of a run may rise that goes on from a version which may know all there is to learn."""


def refuse_unlearnt(
    spec: TrainSpec, losses: Sequence[float], steps_per_pass: float, held_out: Sequence[float] = ()
) -> None:
    """Compare the losses of a run's last part with those of its first.

    A part is a whole pass over the data, so that the same samples are compared, or a quarter of a run with a single
    pass. Not checked are runs with few steps, runs that started at a low loss, and runs whose loss on the hold-out
    has fallen. With `sdft`, whose answers change each time, and in a run that continues from a version, the loss
    need not fall but must not rise, since there may have been nothing left to learn. If such a run is also kept
    close to its base by replay, which increases the loss, the decision is left to the gate.

    Args:
        losses: Of every step, in order.
        steps_per_pass: Steps of one pass over the data.
        held_out: Losses on the hold-out, in order.

    Raises:
        RunFailed: The loss did not fall.
    """
    steps = len(losses)
    passes = steps / max(1.0, steps_per_pass)
    if steps < (FEWEST_STEPS if passes >= 2 else FEWEST_OF_ONE_PASS):
        return
    part = math.ceil(steps_per_pass) if passes >= 2 else steps // 4
    first, last = losses[:part], losses[-part:]
    before, after = fmean(first), fmean(last)
    recipe = RECIPES[spec.recipe]
    if recipe.kind == "sft" and not recipe.samples_answers and before < LOW and after < LOW:
        return
    if len(held_out) > 1:
        final_loss = min(held_out[1:]) if spec.early_stopping_patience else held_out[-1]
        if final_loss < held_out[0]:
            return
    if spec.adapter.init_from is not None and spec.replay_share > 0:
        return
    allowed = -ROUNDING * abs(before)
    if spec.adapter.init_from is not None or recipe.samples_answers:
        allowed = max(RISE * abs(before), 2 * math.sqrt((pvariance(first) + pvariance(last)) / part))
    if after < before + allowed:
        return
    raise RunFailed(
        f"The training loss did not fall: {before:.4g} over the first {part} steps, {after:.4g} over the last "
        f"{part}. Nothing was learnt, so no result is kept.",
        f"If learning_rate ({spec.learning_rate:g}) is low, raise it, or take more epochs; if the loss jumps "
        "about, lower it. Rows that contradict one another cannot be learnt either.",
    )
