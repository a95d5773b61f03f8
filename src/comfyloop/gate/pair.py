"""Combines the verdicts on a version's two sides, since it is promoted as a whole or not at all. Pure.

- A side that is rejected rejects the version; one about which a person is asked has the person asked about both.
- Both sides better: promote. One better and the other measured and worse in nothing: promote.
- Otherwise not enough evidence.

Each side's verdict errs independently, so of versions that are not better at most twice `gate_level` pass.
"""

from __future__ import annotations

from comfyloop.gate.judging import ALL, GENERAL
from comfyloop.gate.metrics import DENOISING_LOSS
from comfyloop.records import GateReport, Measure, Verdict
from comfyloop.settings import Settings


def together(text: GateReport, image: GateReport, settings: Settings) -> GateReport:
    """One report of a version both of whose sides have changed."""
    sides = {"The text side": text, "The image side": image}
    verdicts = {report.verdict for report in sides.values()}
    if Verdict.REJECT in verdicts:
        name = next(name for name, report in sides.items() if report.verdict is Verdict.REJECT)
        verdict, first = Verdict.REJECT, f"{name} is rejected, and a version is promoted whole or not at all."
    elif Verdict.ASK in verdicts:
        name = next(name for name, report in sides.items() if report.verdict is Verdict.ASK)
        verdict, first = Verdict.ASK, f"A person should look at {name.lower()} first."
    elif Verdict.PROMOTE not in verdicts:
        verdict, first = Verdict.NOT_ENOUGH_EVIDENCE, "Neither side is better with confidence."
    elif verdicts == {Verdict.PROMOTE}:
        verdict, first = Verdict.PROMOTE, "Both sides are better."
    else:
        good = next(name for name, report in sides.items() if report.verdict is Verdict.PROMOTE)
        rest = next(name for name in sides if name != good)
        if harmless(sides[rest], settings):
            verdict = Verdict.PROMOTE
            first = f"{good} is better, and {rest.lower()} was measured and is worse in nothing."
        else:
            verdict = Verdict.NOT_ENOUGH_EVIDENCE
            first = f"{good} is better, but of {rest.lower()} it is not known that it does no harm."
    return text.model_copy(
        update={
            "verdict": verdict,
            "reasons": (first, *text.reasons, *image.reasons),
            "next_step": _next_step(verdict, text, image),
            "details": (*text.details, *image.details),
            "measures": (*text.measures, *image.measures),
            "items": (*text.items, *image.items),
            "sheet": image.sheet,
            "seconds": round(text.seconds + image.seconds, 3),
        }
    )


def _next_step(verdict: Verdict, text: GateReport, image: GateReport) -> str:
    """That of the side that decided, the text side's where both did."""
    sides = [report for report in (text, image) if report.verdict is verdict] or [text, image]
    return next((report.next_step for report in sides if report.next_step), "")


def harmless(report: GateReport, settings: Settings) -> bool:
    """Whether a side was measured on enough questions and none of its intervals lies on the wrong side of zero.

    What is forgotten in general has a limit of its own, beyond which a side is rejected.
    """
    enough = any(m.items >= settings.gate_min_items for m in report.measures if m.slice == ALL)
    measures = (m for m in report.measures if not (m.slice.startswith(GENERAL) or _is_found(m)))
    return enough and not any(map(_is_worse, measures))


def _is_found(measure: Measure) -> bool:
    """Whether it is a measure of a slice that was searched for: it is reported because it got worse, so it is no
    evidence of that."""
    return " " in measure.slice and measure.metric != DENOISING_LOSS


def _is_worse(measure: Measure) -> bool:
    return measure.high < 0 if measure.higher_is_better else measure.low > 0
