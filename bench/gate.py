"""How often the gate errs: seeded simulated pairs through the decision that the loop takes, beside the rule of the
first release and, where soup-cli is installed, its `ship_verdict`.

Likelihood and edit distance gain together (correlation 0.6) with heavy tails (Student's t, 4 degrees of freedom);
effects are in standard deviations of an item's gain: a first turn of two dozen edits on the starter has 2 to 4, a
second one 0.8 to 1.5. Answers are given to the newest 40 items, as in the loop. General questions are as many as
the suites have, with the spread that they had when a version trained on 40 edits was scored.

    python bench/gate.py [--pairs 200]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comfyloop.gate import statistics as gate_statistics
from comfyloop.gate import suites
from comfyloop.gate.decision import SMALLEST_GAIN, better, decide
from comfyloop.gate.metrics import EDIT_DISTANCE, LOG_LIKELIHOOD, RIGHT_ANSWER
from comfyloop.gate.pairs import Evidence, Fluency, General, Pairs, mean
from comfyloop.records import Verdict
from comfyloop.settings import Settings

SETTINGS = Settings(gate_min_items=5)
SIZES = (5, 6, 8, 12, 20, 60, 100, 200)
RETRIES = 30
RESULTS = Path(__file__).parent / "results"

SPREAD = {LOG_LIKELIHOOD: 0.6, EDIT_DISTANCE: 0.2}
"""Standard deviation of an item's gain."""

MOVED = {RIGHT_ANSWER: 0.16, LOG_LIKELIHOOD: 0.19}
"""Standard deviation of a general question's change, measured on the starter after a hard turn (40 edits, 6 epochs at
1e-3): the larger it is, the less can be told."""

Draw = np.random.Generator


@dataclass(frozen=True)
class World:
    """How candidates differ from live; effects are in standard deviations of an item's gain."""

    likelihood: float = 0.0
    distance: float = 0.0
    ties: float = 0.1  # share of items whose answers are equally far
    skewed: bool = False  # no better on the mean: nine items a little better, the tenth much worse
    hurt: int = 0  # items that lose 2 to 3 nats and get farther
    aligned: bool = True  # whether some part that was found holds the hurt items
    noise: bool = False  # what was corrected and is answered are words in no order
    general: float = 0.0  # true loss on general questions
    outlier: bool = False  # one item of a good candidate loses 3 nats


def gains(draw: Draw, items: int, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Of likelihood and of distance, in their units."""
    scale = math.sqrt(2.0)  # of Student's t with 4 degrees of freedom
    first, other = draw.standard_t(4, (2, items)) / scale
    second = 0.6 * first + 0.8 * other
    if world.skewed:
        low = draw.random(items) < 0.1
        first, second = (np.where(low, -2.7, 0.3) + 0.3 * part for part in (first, second))
    likelihood = SPREAD[LOG_LIKELIHOOD] * (first + world.likelihood)
    distance = SPREAD[EDIT_DISTANCE] * (second + world.distance)
    distance[draw.random(items) < world.ties] = 0.0
    if world.hurt:
        likelihood[: world.hurt] = -draw.uniform(2, 3, world.hurt)
        distance[: world.hurt] = -draw.uniform(0.05, 0.3, world.hurt)
    if world.outlier:
        likelihood[0], distance[0] = -3.0, -0.3
    return likelihood, distance


def pair(metric: str, gain: np.ndarray, live: np.ndarray, name: str = "all") -> Pairs:
    sign = 1 if metric == LOG_LIKELIHOOD else -1
    return Pairs(metric, name, tuple(live.tolist()), tuple((live + sign * gain).tolist()))


def evidence(draw: Draw, items: int, world: World, looks: float = 1.0) -> Evidence:
    likelihood, distance = gains(draw, items, world)
    return assemble(draw, likelihood, distance, world, looks)


def assemble(
    draw: Draw, likelihood: np.ndarray, distance: np.ndarray, world: World, looks: float = 1.0
) -> Evidence:
    items = len(likelihood)
    before = draw.normal(-3, 0.8, items)
    far = draw.uniform(0.4, 0.9, items)
    answered = draw.permutation(items)[: SETTINGS.gate_max_answers]
    return Evidence(
        likelihood=pair(LOG_LIKELIHOOD, likelihood, before),
        distance=pair(EDIT_DISTANCE, distance[answered], far[answered]),
        slices=tuple(slices(draw, likelihood, before, distance, far, set(answered.tolist()), world)),
        general=general(draw, world.general),
        fluency=(fluency(draw, world.noise),),
        looks=looks,
    )


def slices(
    draw: Draw,
    likelihood: np.ndarray,
    before: np.ndarray,
    distance: np.ndarray,
    far: np.ndarray,
    answered: set[int],
    world: World,
) -> list[Pairs]:
    """Eight clusters, two authors and two ages by chance; where it is aligned, the hurt items are a cluster but
    for one that is another's, and one of the others is in it."""
    items = len(likelihood)
    if items < 10:
        return []
    clusters = draw.integers(0, min(8, items // 5), items)
    if world.hurt and world.aligned:
        clusters += 1
        clusters[: world.hurt - 1] = 0
        clusters[world.hurt + 1] = 0
    author, age = draw.integers(0, 2, items), np.arange(items) % 2
    all_pairs = []
    for kind, labels in (("about", clusters), ("by", author), ("age", age)):
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            if len(members) < 3:
                continue
            name = f"{kind} {label}"
            all_pairs.append(pair(LOG_LIKELIHOOD, likelihood[members], before[members], name))
            answered_members = np.array([i for i in members if i in answered], dtype=int)
            if len(answered_members):
                all_pairs.append(pair(EDIT_DISTANCE, distance[answered_members], far[answered_members], name))
    return all_pairs


def general(draw: Draw, loss: float) -> tuple[General, ...]:
    questions = [question for question in suites.general_questions() if not question.picture]
    right = sum(bool(question.right) for question in questions)
    chance = draw.uniform(0.5, 0.95, right)
    now = chance - loss + MOVED[RIGHT_ANSWER] * draw.standard_t(4, right) / math.sqrt(2)
    own = -draw.uniform(0.4, 1.0, len(questions) - right)
    said = own * (1 + loss) + MOVED[LOG_LIKELIHOOD] * draw.standard_t(4, len(own)) / math.sqrt(2)
    kinds = ((RIGHT_ANSWER, chance, now), (LOG_LIKELIHOOD, own, said))
    return tuple(
        General(metric, "general", tuple(base.tolist()), tuple(base.tolist()), tuple(new.tolist()))
        for metric, base, new in kinds
    )


def fluency(draw: Draw, noise: bool) -> Fluency:
    """As measured on the starter: words in order are 1 to 4 nats per token likelier than shuffled."""
    order, wanted = (draw.normal(0, 0.7, 6) if noise else draw.uniform(1, 4, 6) for _ in range(2))
    return Fluency(answers=6, order=tuple(order.tolist()), wanted_order=tuple(wanted.tolist()), control=2.5)


# --- rules


def of_today(observed: Evidence) -> Verdict:
    return decide(observed, SETTINGS).verdict


def of_the_first_release(observed: Evidence) -> Verdict:
    """Its rule in short: worse by a part that samples name, or 2% of loss as a point against live, rejects; better
    by likelihood at 5% and answers on the mean not farther promotes."""
    pairs, distance = observed.likelihood, observed.distance
    assert pairs is not None and distance is not None
    if any(better([-gain for gain in part.gains], 0.95) for part in (pairs, distance)):
        return Verdict.REJECT
    own = next(part for part in observed.general if part.metric == LOG_LIKELIHOOD)
    if mean(own.losses(own.live)) > 0.02:
        return Verdict.REJECT
    good = better(pairs.gains, 0.95) and mean(pairs.gains) >= SMALLEST_GAIN
    return Verdict.PROMOTE if good and math.fsum(distance.gains) >= 0 else Verdict.NOT_ENOUGH_EVIDENCE


def of_soup() -> Callable[[Evidence], Verdict] | None:
    """soup-cli's published decision on the same numbers: closeness of answers, and chances of right answers."""
    try:
        from soup_cli.utils import ship_verdict
    except ImportError:
        print("soup-cli's rule is left out: it is not installed (pip install soup-cli).")
        return None

    def rule(observed: Evidence) -> Verdict:
        assert observed.distance is not None
        part = next(kind for kind in observed.general if kind.metric == RIGHT_ANSWER)
        live, now = ((1 - mean(side)) for side in (observed.distance.live, observed.distance.candidate))
        win = ship_verdict.build_task_win("metric", live, now)
        deltas = ship_verdict.compute_benchmark_deltas(
            {"general": mean(part.base)}, {"general": mean(part.candidate)}
        )
        ships = ship_verdict.decide_ship(win, deltas).decision == ship_verdict.DECISION_SHIP
        return Verdict.PROMOTE if ships else Verdict.REJECT

    return rule


# --- cells


@dataclass(frozen=True)
class Cell:
    """`bar` bounds the share that is promoted: from above where it is no good, from below where it is."""

    name: str
    world: World
    sizes: tuple[int, ...]
    good: bool = False
    bars: tuple[tuple[int, float], ...] = ()  # (items, share promoted)


NO_BETTER = tuple((size, 0.02) for size in SIZES)
CELLS = (
    Cell("no better", World(), SIZES, bars=NO_BETTER),
    Cell("no better, one in ten much worse", World(skewed=True), SIZES, bars=NO_BETTER[-2:]),
    Cell("likelier, answers no closer", World(likelihood=1.5), SIZES, bars=NO_BETTER),
    Cell("likelier, answers farther", World(likelihood=1.5, distance=-0.5), SIZES, bars=NO_BETTER),
    Cell("noise, even closer", World(1.5, 1.0, noise=True), SIZES, bars=NO_BETTER),
    Cell("better by 0.5", World(0.5, 0.5), SIZES, True),
    Cell("better by 1", World(1.0, 1.0), SIZES, True, ((12, 0.75), (60, 0.9))),
    Cell("better by 2", World(2.0, 2.0, ties=0.0), SIZES, True, ((12, 0.75), (60, 0.9))),
    Cell("better by 1, one outlier", World(1.0, 1.0, outlier=True), (12, 20, 60, 100), True, ((20, 0.75),)),
    Cell("better by 1, 5% hurt, a part found", World(1.0, 1.0, hurt=5), (100,), bars=((100, 0.05),)),
    Cell(
        "better by 1, 5% hurt, no part", World(1.0, 1.0, hurt=5, aligned=False), (100,), bars=((100, 0.05),)
    ),
    Cell("better by 1, general loss 1%", World(1.0, 1.0, general=0.01), (60,), True, ((60, 0.75),)),
    Cell("better by 1, general loss 4%", World(1.0, 1.0, general=0.04), (60,)),
    Cell("better by 1, general loss 10%", World(1.0, 1.0, general=0.10), (60,)),
    Cell("better by 1, general loss 20%", World(1.0, 1.0, general=0.20), (60,), bars=((60, 0.05),)),
)


def run(cell: Cell, rules: dict[str, Callable[[Evidence], Verdict]], pairs: int) -> list[dict[str, Any]]:
    rows = []
    for items in cell.sizes:
        counts = {name: dict.fromkeys(Verdict, 0) for name in rules}
        for seed in range(pairs):
            world = evidence(np.random.default_rng([seed, items, CELLS.index(cell)]), items, cell.world)
            for name, rule in rules.items():
                counts[name][rule(world)] += 1
        rows.append(
            {
                "cell": cell.name,
                "items": items,
                "pairs": pairs,
                "good": cell.good,
                "bar": dict(cell.bars).get(items),
                "verdicts": {
                    name: {verdict.value: n / pairs for verdict, n in verdict_counts.items()}
                    for name, verdict_counts in counts.items()
                },
            }
        )
    return rows


def retries(rules: dict[str, Callable[[Evidence], Verdict]], items: int, pairs: int) -> dict[str, Any]:
    """Candidates that are no better, tried on the same items until one is promoted or 30 were: what live does on
    an item is the same each time."""
    passed = dict.fromkeys(rules, 0)
    for seed in range(pairs):
        draw = np.random.default_rng([seed, items, 99])
        live = gains(draw, items, World(ties=0.0))
        out = dict.fromkeys(rules, False)
        for look in range(1, RETRIES + 1):
            new = gains(draw, items, World(ties=0.0))
            each = [(a - b) / math.sqrt(2) for a, b in zip(new, live, strict=True)]
            world = assemble(draw, each[0], each[1], World(), float(look))
            for name, rule in rules.items():
                out[name] = out[name] or rule(world) is Verdict.PROMOTE
        for name in rules:
            passed[name] += out[name]
    return {
        "cell": f"no better, {RETRIES} tries at the same items",
        "items": items,
        "pairs": pairs,
        "good": False,
        "bar": 0.05,
        "verdicts": {name: {"promote": n / pairs} for name, n in passed.items()},
    }


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    lines = [
        "| candidates | items | bar | " + " | ".join(names) + " | of the gate: reject, ask, not enough | |",
        "|---|---|---|" + "---|" * (len(names) + 2),
    ]
    for row in rows:
        shares = [row["verdicts"][name]["promote"] for name in names]
        bar = row["bar"]
        # an exact test errs just so often: two standard errors of what is simulated are no miss
        slack = 0.0 if bar is None else 2 * math.sqrt(bar * (1 - bar) / row["pairs"])
        is_met = bar is None or (shares[0] >= bar if row["good"] else shares[0] <= bar + slack)
        bar_text = "" if bar is None else f"{'>=' if row['good'] else '<='} {bar:.0%}"
        rest = row["verdicts"][names[0]]
        others = ", ".join(f"{rest[v]:.0%}" for v in ("reject", "ask", "not_enough_evidence") if v in rest)
        cells = " | ".join(f"{share:.1%}" for share in shares)
        lines.append(
            f"| {row['cell']} | {row['items']} | {bar_text} | {cells} | {others} | {'' if is_met else 'MISSED'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=200, help="simulated pairs a cell")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    gate_statistics.RESAMPLES = 500  # of intervals, which are told and decide nothing in the gate
    began = time.monotonic()
    rules: dict[str, Callable[[Evidence], Verdict]] = {
        "the gate": of_today,
        "first release": of_the_first_release,
    }
    if (soup := of_soup()) is not None:
        rules["soup-cli"] = soup
    rows = [row for cell in CELLS for row in run(cell, rules, args.pairs)]
    rows += [retries(rules, items, args.pairs) for items in (6, 12, 60)]
    text = table(rows, list(rules))
    print(text)
    seconds = time.monotonic() - began
    print(f"\n{seconds:.0f} s.")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gate.md").write_text("Share of candidates that is promoted.\n\n" + text + "\n")
    (args.out / "gate.json").write_text(
        json.dumps({"seconds": round(seconds), "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
