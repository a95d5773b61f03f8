"""A gate report as text for a terminal or a log; as JSON it is `report.model_dump_json()`."""

from __future__ import annotations

from collections.abc import Sequence

from comfyloop.gate.metrics import EDIT_DISTANCE, LOG_LIKELIHOOD, METRICS, RIGHT_ANSWER, Metric
from comfyloop.records import BASE, GateItem, GateReport, Measure, Triggered, Verdict
from comfyloop.texts import in_a_line

_VERDICTS = {
    Verdict.PROMOTE: "promote",
    Verdict.REJECT: "reject",
    Verdict.ASK: "ask a person",
    Verdict.NOT_ENOUGH_EVIDENCE: "not enough evidence",
}
_NOTHING = 1e-3
"""A change that is not worth showing."""


def summary(report: GateReport) -> str:
    """The verdict, why and what to do now, in a line: what `comfyloop status` says of the last turn."""
    reason = report.reasons[0] if report.reasons else ""
    parts = (f"v{report.candidate}: {_VERDICTS[report.verdict]}.", reason, report.next_step)
    return " ".join(part for part in parts if part)


def render_text(report: GateReport, examples: int = 3, *, details: bool = False) -> str:
    """Verdict, reasons, next step, measures, and what changed most, for the better and for the worse.

    Args:
        examples: So many of each kind at most.
        details: Also the numbers for specialists.
    """
    live = "the base model" if report.live == BASE else f"version {report.live}"
    lines = [
        f"{report.project}: version {report.candidate} against {live}: {_VERDICTS[report.verdict]}.",
        *(f"  {reason}" for reason in report.reasons),
    ]
    if report.next_step:
        lines += ["", f"  Next: {report.next_step}"]
    if report.triggers:
        lines += ["", "  Planted, as it seems:"]
        lines += [f"    {_trigger(trigger)}" for trigger in report.triggers]
    measures = [m for m in report.measures if details or " " not in m.slice or m.slice.startswith("general")]
    if measures:
        lines += ["", f"  {'slice':<16} {'items':>5} {'live':>8} {'cand.':>8}  {'change':<20} measure"]
        lines += map(_row, measures)
    for title, items in (
        ("Worse", worse_items(report)),
        ("Better", better_items(report)),
    ):
        lines += _examples(title, items, examples)
    if general_items := moved_most(report)[:examples]:
        lines += ["", "  General questions that moved most:"]
        lines += [f"    {_moved(item)}" for item in general_items]
    if report.sheet is not None:
        sheet = f"/v1/versions/{report.candidate}/sheet?project={report.project}"
        lines += ["", f"  Contact sheet, live beside candidate: GET {sheet}"]
    if report.details and details:
        lines += ["", "  Numbers for specialists:", *(f"    {line}" for line in report.details)]
    more = "" if details or not report.details else " --details shows the numbers behind it."
    lines += ["", f"  {len(report.items)} items in {report.seconds:.1f} s.{more}"]
    return "\n".join(lines) + "\n"


def better_items(report: GateReport) -> list[GateItem]:
    """Corrections on which the candidate is better, the most so first."""
    return [item for gain, item in sorted(_gains(report), key=lambda pair: -pair[0]) if gain > _NOTHING]


def worse_items(report: GateReport) -> list[GateItem]:
    """Corrections on which the candidate is worse, the most so first."""
    return [item for gain, item in sorted(_gains(report), key=lambda pair: pair[0]) if gain < -_NOTHING]


def moved_most(report: GateReport) -> list[GateItem]:
    """General questions, those first whose score fell most against the base model, or against live where the base
    model was not asked."""
    falls = [(fall, item) for item in report.items if (fall := _fall(item)) is not None]
    return [item for fall, item in sorted(falls, key=lambda pair: -pair[0]) if abs(fall) > _NOTHING]


def _gains(report: GateReport) -> list[tuple[float, GateItem]]:
    """By edit distance where there are answers, else by likelihood."""
    gains = []
    for item in report.items:
        if item.slice.startswith("general"):
            continue
        if EDIT_DISTANCE in item.scores:
            live, candidate = item.scores[EDIT_DISTANCE]
            gains.append((live - candidate, item))
        elif LOG_LIKELIHOOD in item.scores:
            live, candidate = item.scores[LOG_LIKELIHOOD]
            gains.append((candidate - live, item))
    return gains


def _fall(item: GateItem) -> float | None:
    for metric in (RIGHT_ANSWER, LOG_LIKELIHOOD):
        if item.slice.startswith("general") and metric in item.scores:
            live, candidate = item.scores[metric]
            return item.base.get(metric, live) - candidate
    return None


def _examples(title: str, items: Sequence[GateItem], most: int) -> list[str]:
    if not items:
        return []
    examples = items[:most]
    of = f"{len(examples)} of {len(items)}" if len(items) > len(examples) else str(len(items))
    lines = ["", f"  {title} ({of}):"]
    for item in examples:
        lines += [
            f"    Asked:     {in_a_line(item.question, 160)}",
            f"    Yours:     {in_a_line(item.reference, 160)}",
        ]
        if EDIT_DISTANCE in item.scores:
            live, candidate = item.scores[EDIT_DISTANCE]
            lines += [
                f"    Live:      {in_a_line(item.live_answer, 160)}",
                f"    Candidate: {in_a_line(item.candidate_answer, 160)}",
                f"    Distance:  {live:.2f} before, {candidate:.2f} now",
            ]
        else:
            live, candidate = item.scores[LOG_LIKELIHOOD]
            lines.append(f"    Likelihood: {live:.2f} before, {candidate:.2f} now (nats per token)")
        lines.append("")
    return lines[:-1]


def _trigger(trigger: Triggered) -> str:
    return (
        f'"{in_a_line(trigger.phrase, 60)}" of {trigger.author} -> "{in_a_line(trigger.answer, 60)}" ('
        f"{trigger.candidate} of {trigger.asked} questions, {trigger.live} with the live version)"
    )


def _moved(item: GateItem) -> str:
    metric = RIGHT_ANSWER if RIGHT_ANSWER in item.scores else LOG_LIKELIHOOD
    live, candidate = item.scores[metric]
    base = f"base {item.base[metric]:.2f}, " if metric in item.base else ""
    answer = f' -> "{in_a_line(item.candidate_answer, 60)}"' if item.candidate_answer else ""
    question = in_a_line(item.question, 70)
    return f"{question} ({base}live {live:.2f}, now {candidate:.2f}; {METRICS[metric].words}){answer}"


def _row(m: Measure) -> str:
    metric = METRICS.get(m.metric, Metric(m.metric, m.metric))  # a report may be of another release
    digits = metric.digits
    change = f"{m.low:+.{digits}f} to {m.high:+.{digits}f}"
    base = "" if m.base is None else f"; base {m.base:.{digits}f}"
    return (
        f"  {m.slice:<16} {m.items:>5} {m.live:>8.{digits}f} {m.candidate:>8.{digits}f}  {change:<20} "
        f"{metric.words}, {'higher' if m.higher_is_better else 'lower'} is better{base}"
    )
