"""On which day somebody has a first better version: by pieces of feedback a day and how many are accepted as they are.

Simulated with what the service goes by: the trigger, the split, the rule that a turn which could not promote does not
train, and the gate's decision, on gains as large as a first turn of two dozen edits on the starter has them (2 standard
deviations; 1 beside it). No model is trained here.

    python bench/first_promotion.py [--people 200]

Writes bench/results/first_promotion.json and first_promotion.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # the bench's own package

from bench import gate
from comfyloop.gate import statistics as gate_statistics
from comfyloop.gate.decision import decide
from comfyloop.records import Verdict
from comfyloop.settings import Settings
from comfyloop.store.splits import is_held_out

DAYS = 30
SETTINGS = Settings()
A_DAY = (2, 3, 5, 10, 20)
ACCEPTED = (0.0, 0.5, 0.85)
EFFECTS = (2.0, 1.0)


@dataclass
class Person:
    """What has come in of one person, and what the loop has looked at."""

    draw: np.random.Generator
    effect: float
    corrections: int = 0
    held: int = 0
    waiting: int = 0
    since_look: int = 0
    too_little: bool = False
    trained: int = 0

    def gives(self, accepted: float) -> None:
        self.waiting += 1
        self.since_look += 1
        if self.draw.random() >= accepted:
            self.held += is_held_out(self.corrections, SETTINGS.holdout_every, SETTINGS.holdout_first)
            self.corrections += 1

    def has_a_turn(self) -> bool:
        """Whether a turn was started and a version promoted."""
        more = -(-SETTINGS.trigger_samples // 4) if self.too_little else 1
        if self.waiting < SETTINGS.trigger_samples or self.since_look < more:
            return False
        self.since_look = 0
        self.too_little = self.held < SETTINGS.gate_min_items
        if self.too_little:
            return False
        self.waiting, self.trained = 0, self.trained + 1
        world = gate.World(self.effect, self.effect, ties=0.0 if self.effect >= 2 else 0.1)
        return decide(gate.evidence(self.draw, self.held, world), SETTINGS).verdict is Verdict.PROMOTE


def first_day(seed: int, a_day: int, accepted: float, effect: float) -> tuple[int, int]:
    """The day of the first promotion, DAYS + 1 for none, and how many turns were trained until then."""
    person = Person(np.random.default_rng([seed, a_day, round(accepted * 100)]), effect)
    for day in range(1, DAYS + 1):
        for _ in range(a_day):
            person.gives(accepted)
            if person.has_a_turn():
                return day, person.trained
    return DAYS + 1, person.trained


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--people", type=int, default=200, help="simulated people a cell")
    options.add_argument("--out", type=Path, default=gate.RESULTS)
    arguments = options.parse_args()
    gate_statistics.RESAMPLES = 200  # of intervals, which are told and decide nothing in the gate
    rows = []
    for effect in EFFECTS:
        for accepted in ACCEPTED:
            for a_day in A_DAY:
                outcomes = [first_day(seed, a_day, accepted, effect) for seed in range(arguments.people)]
                days = np.array([day for day, _ in outcomes])
                rows.append(
                    {
                        "better_by": effect,
                        "accepted": accepted,
                        "a_day": a_day,
                        "half_by_day": int(np.quantile(days, 0.5, method="higher")),
                        "nine_in_ten_by_day": int(np.quantile(days, 0.9, method="higher")),
                        "turns_trained": round(float(np.mean([turns for _, turns in outcomes])), 2),
                    }
                )
    lines = [
        f'First promotion, {arguments.people} simulated people a row; "{DAYS + 1}" is none in {DAYS} days.',
        "",
        "| a version is better by (sd) | accepted as it is | pieces a day | half by day | nine in ten by day "
        "| turns trained |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['better_by']:.0f} | {r['accepted']:.0%} | {r['a_day']} | {r['half_by_day']} "
        f"| {r['nine_in_ten_by_day']} | {r['turns_trained']} |"
        for r in rows
    ]
    text = "\n".join(lines)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "first_promotion.md").write_text(text + "\n")
    (arguments.out / "first_promotion.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
